"""A service around `Segmenter`: pictures and words of many people in, label maps out.

`service.Service` holds what does not depend on HTTP: the models, encoded pictures in bounded memory, the limits. The
rest puts it behind LitServe (extra `serve`): `requests` and `answers` turn HTTP into queries and results into bytes,
`gate` stands before everything (token, size, pace, queue, metrics), `server` starts the processes.

In: HTTP requests, or the pictures and words behind them. Out: the files of `s2clip.results`, figures of the service. No
command line is imported here, and nothing below imports this.
"""
