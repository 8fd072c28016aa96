"""Envelope: one system's way to word every failure, from a module's Problem to the router's own 404."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette._utils import get_route_path
from starlette.exceptions import HTTPException
from starlette.responses import Response

from bedplate.kernel.errors import STATUSES, Failure, FieldError, Kind, Problem, field_errors


class Envelope(ABC):
    """Subclasses say a body and, where the document differs, statuses and messages.

    `model`: the body as the OpenAPI document declares it.
    """

    model: ClassVar[type[BaseModel]]
    statuses: Mapping[Kind, int] = STATUSES

    @abstractmethod
    def body(self, failure: Failure) -> Any:
        """The documented error body (JSON values)."""

    @abstractmethod
    def invalid(self, request: Request, fields: list[FieldError]) -> tuple[int, str]:
        """Status and message for a request that does not fit the operation's schema."""

    def at(self, path: str) -> "Envelope":
        """How this path words failures; a system may have doors that speak otherwise."""
        return self

    def message(self, status: int) -> str:
        """Words for a failure that no module raised: unknown path, wrong method, a defect."""
        return HTTPStatus(status).phrase

    def install(self, app: FastAPI) -> None:
        """Catch everything that can leave the application as an error."""
        app.add_exception_handler(Problem, self._problem)
        app.add_exception_handler(RequestValidationError, self._validation)
        app.add_exception_handler(HTTPException, self._http)

    def of_problem(self, problem: Problem, request_id: str) -> Response:
        """The answer for a Problem, also for those that no handler has seen (limits, maintenance)."""
        headers = {}
        status = self.status_of(problem)
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if "retry_after" in problem.details:
            headers["Retry-After"] = str(problem.details["retry_after"])
        elif problem.kind is Kind.UNAVAILABLE:
            headers["Retry-After"] = "5"
        return self._answer(Failure(status, self.words_of(problem), request_id, problem=problem, headers=headers))

    def status_of(self, problem: Problem) -> int:
        """The status of a Problem in this system."""
        return self.statuses.get(problem.kind, STATUSES[problem.kind])

    def words_of(self, problem: Problem) -> str:
        """The message of a Problem in this system."""
        return str(problem)

    def defect(self, request_id: str) -> Response:
        """The answer to what nobody expected; the cause is in the log under the same request id."""
        return self._answer(Failure(500, self.message(500), request_id))

    def _answer(self, failure: Failure) -> Response:
        return Response(
            orjson.dumps(self.body(failure)),
            status_code=failure.status,
            headers=dict(failure.headers),
            media_type="application/json",
        )

    async def _problem(self, request: Request, problem: Exception) -> Response:
        assert isinstance(problem, Problem)
        return self._here(request).of_problem(problem, request_id_of(request))

    async def _validation(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        fields = field_errors(error.errors())
        here = self._here(request)
        status, message = here.invalid(request, fields)
        return here._answer(Failure(status, message, request_id_of(request), fields=fields))

    async def _http(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        here = self._here(request)
        return here._answer(
            Failure(
                error.status_code,
                here.message(error.status_code),
                request_id_of(request),
                headers=error.headers or {},
            )
        )

    def _here(self, request: Request) -> "Envelope":
        return self.at(get_route_path(request.scope))


def request_id_of(request: Request) -> str:
    """The request id that the edge gave or accepted."""
    return str(request.scope.get("request_id", ""))
