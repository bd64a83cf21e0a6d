"""A bucket of Google Cloud Storage on this machine: `python -m tests.bucket PORT`.

The emulator lacks what these libraries need: generations, by which a writer knows that nobody else wrote,
an object's size beside a piece of it, pieces counted from the end, and the move of an object.
"""

import logging
import sys
import threading
from http import HTTPStatus

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects


def _known(request, storage, name: str) -> dict[str, str]:
    """What is known of an object; its generation is "0" where there is none."""
    try:
        return storage.get_file_obj(request.params["bucket_name"], name)
    except NotFound:
        return {"generation": "0", "size": "0"}


def _insert(request, response, storage, *rest):
    wanted, name = (request.query.get(key, [None])[0] for key in ("ifGenerationMatch", "name"))
    if wanted and name and _known(request, storage, name)["generation"] != wanted:
        _ = request.data  # what is sent has to be read
        response.status = HTTPStatus.PRECONDITION_FAILED
        return
    objects.insert(request, response, storage, *rest)


def _get(request, response, storage, *rest):
    known = _known(request, storage, request.params["object_id"])
    if request.query.get("ifGenerationNotMatch", [None])[0] == known["generation"] != "0":
        response.status = HTTPStatus.NOT_MODIFIED
        return
    asked = request.get_header("range", "")
    if asked.startswith("bytes=-"):
        start = max(0, int(known["size"]) - int(asked.removeprefix("bytes=-")))
        request._request_handler.headers.replace_header("range", f"bytes={start}-")
    response["x-goog-generation"] = known["generation"]
    response["x-goog-stored-content-length"] = str(known["size"])
    objects.get(request, response, storage, *rest)


def _move(request, response, storage, *rest):
    request.params["dest_bucket_name"] = request.params["bucket_name"]
    objects.copy(request, response, storage, *rest)
    objects.delete(request, response, storage, *rest)


def _complete() -> None:
    """Put these in the emulator's place."""
    ours = {objects.insert: _insert, objects.get: _get}
    for _, methods in server.HANDLERS:
        methods |= {method: ours.get(handler, handler) for method, handler in methods.items()}
    move = r"^/storage/v1/b/(?P<bucket_name>[-.\w]+)/o/(?P<object_id>.+)/moveTo/o/(?P<dest_object_id>.+)$"
    server.HANDLERS = ((move, {"POST": _move}), *server.HANDLERS)


def serve(port: int) -> None:
    """Serve an empty bucket called "bucket" until the process ends."""
    logging.disable(logging.CRITICAL)
    _complete()
    running = server.create_server("localhost", port, in_memory=True, default_bucket="bucket")
    running.start()
    print("up", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
