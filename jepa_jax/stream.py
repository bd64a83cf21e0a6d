"""Watch a stream or a video: say what it shows where that changes, and only there.

    python -m jepa_jax.stream --checkpoint=DIR --video=SOURCE [--bank=FILE|--decoder=DIR] [--out=DIR]
    python -m jepa_jax.stream --checkpoint=DIR --video=FILE --offline --segments=N [--bank=FILE]

SOURCE is a file, a URL (http, rtsp, rtmp, hls) or, with --device, a camera. Texts are the nearest of
--bank (one a line), or what the model's decoder writes. OUT/events.jsonl gets a line for each event:
{"start", "end", "at", "text", "score"}; OUT/timeline.png shows it all.
"""

import argparse
import dataclasses
import math
import pathlib
import signal
import sys
import time
from collections.abc import Iterator
from typing import get_args

import numpy as np

from jepa_jax import flags, inference
from jepa_jax.errors import encodable, printable
from jepa_jax.inference import Model
from jepa_jax.streaming import offline
from jepa_jax.streaming.events import EventLog, read_events
from jepa_jax.streaming.frames import NoVideoError, SourceStoppedError, check_rate, open_video, shown
from jepa_jax.streaming.online import Decode, OnlineConfig, OnlineDecoder, variance
from jepa_jax.streaming.texts import NearestText, Speaks, Written, read_bank
from jepa_jax.streaming.timeline import Thinned, Timeline
from jepa_jax.streaming.windows import Embedded, look

# argparse's own word for a flag's default.
_DEFAULT = "(default: %(default)s)"


class Latency:
    """How long windows took, those of the compiling first batch apart: an even sample of any number. There
    are none such where all was compiled before, in `compiled` seconds."""

    def __init__(self, batch: int, compiled: float | None = None):
        self._batch = batch if compiled is None else 0
        self._compiled = compiled
        self._first = 0.0
        self._sample = Thinned(4096)
        self.windows = 0

    def add(self, seconds: float) -> None:
        self.windows += 1
        if self.windows <= self._batch:
            self._first = seconds
        else:
            self._sample.add(seconds)

    def __str__(self) -> str:
        if self._compiled is not None:
            first = f"compiled in {self._compiled:.1f} s before the first"
        elif self._sample.items:
            first = f"the first, with compilation, {self._first:.1f} s"
        else:
            first = f"the first took {self._first:.1f} s, with compilation"
        if not self._sample.items:
            return first
        half, most = np.percentile(self._sample.items, [50, 95])
        return (
            f"from a window's last frame to its embedding {1e3 * half:.1f} ms (median; 95% within "
            f"{1e3 * most:.1f} ms; {first})"
        )


@dataclasses.dataclass
class Watch:
    """One watching: where things go and what is counted."""

    speak: Speaks
    events: EventLog
    timeline: Timeline
    latency: Latency

    def say(self, decode: Decode) -> None:
        """Decode, write the event that ended, print the new one."""
        text, score = self.speak(decode.embedding[None])[0]
        self.timeline.add_decode(decode.middle)
        if self.events.add(decode, text, score):
            print(f"{decode.start:8.1f} s  {printable(text)}  ({score:.2f})", flush=True)


def compile_programs(model: Model, speak: Speaks, query: str, size: int, batch: int) -> float:
    """Look and speak once, at nothing: what a live source sends while programs are compiled is lost.

    Args:
      size: frames of a window.
      batch: windows at a time.

    Returns:
      The seconds that it took.

    Raises:
      UsageError: the model's weights are not numbers.
    """
    begin = time.perf_counter()
    side = model.config.model.x_encoder.image_size
    speak(model.embed_video(np.zeros((batch, size, side, side, 3), np.uint8), query)[:1])
    return time.perf_counter() - begin


def watch_online(windows: Iterator[Embedded], decoder: OnlineDecoder, watch: Watch) -> None:
    """Decode while the windows come. Whatever ends them, what was found so far is kept."""
    end = 0.0
    try:
        for window in windows:
            watch.events.start()
            end = window.end
            watch.latency.add(window.latency)
            decode = decoder(window)
            watch.timeline.add_novelty(window.middle, decoder.novelty)
            if decode is not None:
                watch.say(decode)
    finally:
        decode = decoder.finish()
        if decode is not None:
            watch.say(decode)
        watch.events.end(end)


def watch_offline(windows: Iterator[Embedded], segments: int, embedding: str, watch: Watch) -> None:
    """See all there is, then decode each segment."""
    seen: list[Embedded] = []
    try:
        for window in windows:
            watch.events.start()
            watch.latency.add(window.latency)
            last = seen[-1:] or [window]
            pair = np.stack([last[0].embedding, window.embedding])
            watch.timeline.add_novelty(window.middle, variance(pair))
            seen.append(window)
    finally:
        if seen:
            for decode in offline.decodes(seen, segments, embedding):
                watch.say(decode)
            watch.events.end(seen[-1].end)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line's values.

    Raises:
      UsageError: they do not go together.
    """
    parser = flags.parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a work directory or a checkpoint in it")
    parser.add_argument("--video", required=True, metavar="SOURCE", help="a file, a URL or a camera")
    parser.add_argument("--device", help="a camera's interface: v4l2, avfoundation, dshow")
    parser.add_argument("--bank", metavar="FILE", help="texts to choose from (default: the model's decoder)")
    parser.add_argument(
        "--decoder", metavar="DIR", help="a decoder elsewhere than in the run (default: its own)"
    )
    parser.add_argument(
        "--query",
        help="what the model is asked (default: the run's, if it had one alone, or 'describe the clip')",
    )
    parser.add_argument("--out", type=flags.local_path, default="watched", metavar="DIR", help=_DEFAULT)
    parser.add_argument(
        "--window", type=float, default=2.0, metavar="SECONDS", help=f"what one look takes in {_DEFAULT}"
    )
    parser.add_argument(
        "--step", type=float, metavar="SECONDS", help="look to look, in whole frames (default: window / 2)"
    )
    parser.add_argument("--frames", type=int, metavar="T", help="of a window (default: as in training)")
    parser.add_argument("--batch", type=int, default=1, help=f"windows at a time; more for files {_DEFAULT}")
    online = parser.add_argument_group("as it comes")
    for field in dataclasses.fields(OnlineConfig):
        kind = next(iter(get_args(field.type)), field.type)
        default = f"(default: {'by --step' if field.default is None else field.default})"
        online.add_argument(f"--{field.name}", type=kind, help=default)
    whole = parser.add_argument_group("the whole video")
    whole.add_argument("--offline", action="store_true", help="segments by clustering, once all is seen")
    whole.add_argument("--segments", type=int, metavar="N", help="at most so many")
    whole.add_argument("--embedding", choices=("midpoint", "mean"), help="of a segment (default: midpoint)")
    values = flags.parse_without_config(arguments, parser)
    if values.offline != (values.segments is not None):
        raise flags.UsageError("--offline and --segments=N go together")
    if values.bank is not None and values.decoder is not None:
        raise flags.UsageError("--bank and --decoder: give one, texts are chosen or written")
    if values.embedding is not None and not values.offline:
        raise flags.UsageError("--embedding is of --offline, which is not given")
    for field in dataclasses.fields(OnlineConfig):
        if getattr(values, field.name) is None:
            setattr(values, field.name, field.default)
        elif values.offline:
            raise flags.UsageError(f"--{field.name} is of watching as it comes, without --offline")
    for name in ("window", "step", "frames", "batch", "segments"):
        value = getattr(values, name)
        if value is not None and not 0 < value < math.inf:
            raise flags.UsageError(f"--{name}={value} must be a number above 0")
    return values


def main(arguments: list[str]) -> int:
    """The command line; see the module's docstring."""
    values = parse(arguments)
    with flags.as_usage_errors(ValueError):
        names = [field.name for field in dataclasses.fields(OnlineConfig)]
        config = OnlineConfig(**{name: getattr(values, name) for name in names})
    bank = None if values.bank is None else read_bank(values.bank)
    model = inference.load(values.checkpoint, values.decoder)
    if not isinstance(model, Model):
        raise flags.UsageError(f"{values.checkpoint} holds one part: only whole models can watch")
    tubelet = model.config.model.x_encoder.tubelet_size
    if values.frames is not None and values.frames % tubelet:
        raise flags.UsageError(
            f"--frames={values.frames} must be a multiple of the model's tubelet, {tubelet}"
        )
    if bank is None and not model.has_decoder:
        raise flags.UsageError(
            f"{values.checkpoint} has no decoder to write texts: name a --bank of them, or a --decoder"
        )
    query = model.default_query() if values.query is None else values.query
    with flags.as_usage_errors(ValueError):
        model.check_query(query)
        check_rate(values.frames or model.config.data.frames, values.window)
    out = values.out
    with flags.as_usage_errors(OSError):
        out.mkdir(parents=True, exist_ok=True)
        events = EventLog(out / "events.jsonl")
    speak = Written(model) if bank is None else NearestText(model, bank)
    compiled = None
    if values.device is not None or "://" in values.video:
        size = values.frames or model.config.data.frames
        compiled = compile_programs(model, speak, query, size, values.batch)
    watch = Watch(speak, events, Timeline(), Latency(values.batch, compiled))
    frames = watch.timeline.pass_on(open_video(values.video, device=values.device))
    settings = {"window": values.window, "step": values.step, "size": values.frames, "batch": values.batch}
    windows, renewal = look(model, frames, query, **settings)
    stopped, status = None, 1
    try:
        if values.offline:
            watch_offline(windows, values.segments, values.embedding or "midpoint", watch)
        else:
            watch_online(windows, OnlineDecoder(config, renewal), watch)
    except NoVideoError as error:
        raise flags.UsageError(str(error)) from error
    except SourceStoppedError as error:
        stopped = str(error)
    except KeyboardInterrupt:  # how watching a camera ends
        stopped, status = "stopped by Ctrl-C", 128 + signal.SIGINT
    finally:
        if stopped is not None:
            watch.events.start()  # what stopped before its first window has none
        watch.events.close()
    summarise(values, watch, out)
    if stopped is not None:
        print(f"error: {stopped}; what was found until then is in {out}", file=sys.stderr)
        return status
    return 0


def summarise(values: argparse.Namespace, watch: Watch, out: pathlib.Path) -> None:
    """The picture and the closing lines."""
    found = read_events(out / "events.jsonl")
    if found:
        threshold = None if values.offline else values.threshold
        title = encodable(pathlib.Path(shown(values.video)).name)
        watch.timeline.draw(out / "timeline.png", found, title, threshold)
    decodes, windows = watch.events.decodes, watch.latency.windows
    print(f"{len(found)} events, {decodes} decodes for {windows} windows, in {out}; {watch.latency}")


if __name__ == "__main__":
    sys.exit(flags.run(main, sys.argv[1:]))
