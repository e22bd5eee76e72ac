"""What a service takes at most, and how it refuses the rest."""

from dataclasses import dataclass

from s2clip.errors import S2ClipError, reject


@dataclass(frozen=True)
class Limits:
    """Bounds of one request, and of how many wait.

    max_bytes: of a request, picture and words together. max_pixels: of a picture; counted before it is decoded.
    max_words: words of all classes of a request, each at most `max_letters` long. max_queue: requests that wait or are
    worked on at a time. max_seconds: for the upload of a request, and for decoding a picture.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 64_000_000
    max_words: int = 256
    max_letters: int = 200
    max_queue: int = 64
    max_seconds: float = 20.0

    def __post_init__(self) -> None:
        for name, value in self.__dict__.items():
            if not value > 0:
                reject(name, "more than 0", value)


class Refused(S2ClipError):
    """A request that is not answered: its HTTP status, and one line that says what would be."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple:
        return Refused, (self.status, str(self))
