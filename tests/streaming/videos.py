"""Small videos of plain colours, and a server that can hang up in the middle of one."""

import contextlib
import http.server
import pathlib
import threading
import time

import av
import numpy as np

COLOURS = {"red": (220, 30, 40), "green": (20, 180, 60), "blue": (30, 50, 210)}


def frames_of(*scenes: tuple[str, int]) -> list[np.ndarray]:
    """[H, W, C] uint8 of (colour, frames) scenes; H and W are not equal."""
    return [np.full((48, 64, 3), COLOURS[name], np.uint8) for name, count in scenes for _ in range(count)]


def write(path: pathlib.Path, frames: list[np.ndarray], rate: int, **options: str) -> pathlib.Path:
    """A video file, its format by its name."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.gop_size = 1  # every frame stands alone, so that a part of a file is as many frames
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@contextlib.contextmanager
def served(folder: pathlib.Path, asked: list[str] | None = None):
    """The URL of a folder on this machine; "NAME?hang_up" sends half of what it promises, "NAME?slowly" a
    piece from each "--frame" to the next every tenth of a second. `asked` gets the names asked for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name, _, wish = self.path[1:].partition("?")
            if asked is not None:
                asked.append(name)
            content = (folder / name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the reader may stop first
                if wish == "slowly":
                    for piece in content.split(b"--frame")[1:]:
                        self.wfile.write(b"--frame" + piece)
                        time.sleep(0.1)
                else:
                    self.wfile.write(content[: len(content) // 2] if wish == "hang_up" else content)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
