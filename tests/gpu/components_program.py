"""A short program for compute-sanitizer: the component kernels on maps that stress the unions."""

import torch

from s2clip import ops
from s2clip.testing import comb, integers, probabilities, snake, spiral

for class_map in (comb(61, 67), snake(61, 67), spiral(61, 67), integers(2, 61, 67)):
    class_map = class_map.cuda()[None]
    labels, count = ops.label_components(class_map)
    ops.measure_components(labels, class_map, probabilities(1, 2, 61, 67).cuda(), count=count)
torch.cuda.synchronize()
