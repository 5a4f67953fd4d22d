"""A second, small, warm process for short questions; started on demand, it leaves after some idle minutes.

python -m engine.jobs.answerer --home HOME --name NAME --slot answers
"""

from __future__ import annotations

import faulthandler
import logging
import sys
import time
import traceback
from collections.abc import Sequence

from engine.errors import EngineError, StoreError
from engine.jobs.answers import Request, Requests
from engine.jobs.presence import POLL_SECONDS, Presence
from engine.jobs.runner import ANSWERER, Loaded, load
from engine.jobs.worker import arguments

IDLE_SECONDS = 300.0


def serve_answers(presence: Presence, answerer_name: str, idle_seconds: float = IDLE_SECONDS) -> None:
    """Answer questions until there have been none for a while, or nobody wants them."""
    answerer = load(answerer_name)
    requests = Requests(presence.home)
    presence.ready()
    last = time.monotonic()
    while presence.wanted() and time.monotonic() - last < idle_seconds:
        try:
            request = requests.take(presence.name)
            if request is None:
                presence.leaving.wait(POLL_SECONDS)
            else:
                _answer(presence, requests, request, answerer)
                last = time.monotonic()
        except StoreError as error:
            logging.warning("the questions cannot be read or answered: %s", error)
            presence.leaving.wait(1.0)


def _answer(presence: Presence, requests: Requests, request: Request, answerer: Loaded) -> None:
    try:
        requests.answer(request.id, answerer.call(presence.home, request.kind, request.payload, answerer.caches))
    except StoreError:
        raise
    except EngineError as error:
        requests.fail(request.id, error.what, error.todo)
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        cause = f"No answer: {type(error).__name__}: {error}"
        requests.fail(request.id, cause[:600], "logs/answers.log below the store's home has the details.")


def main(argv: Sequence[str] | None = None) -> int:
    """Be the one who answers."""
    given = arguments(argv, "answerer", ANSWERER)
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    with Presence(given.home, given.name, given.slot, given.revision) as presence:
        presence.obey_signals()
        serve_answers(presence, given.answerer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
