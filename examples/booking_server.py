"""A restaurant's booking desk: an MCP server on stdin and stdout whose tools ask the human.

    python examples/booking_server.py            # needs the `mcp` extra; started by a client, not by hand

`book_table` asks for what the call leaves out (a form with a date, a number of people, or both), then whether to go
ahead. Clients of every protocol revision can use it: those of 2026-07-28 get each question as an "input required"
result and call again with the answer, older ones are asked in the middle of the call. `Resolve` does either.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import Annotated, Any

from mcp.server.mcpserver import (
    AcceptedElicitation,
    Context,
    Elicit,
    ElicitationResult,
    MCPServer,
    RequestStateSecurity,
    Resolve,
)
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import BaseModel, BeforeValidator, Field

# Standard output belongs to the protocol and the log goes to standard error, where at the default level (INFO) it
# would fill the terminal of whoever started the client.
#
# The key and the time say how long a question may be answered that the server has asked: also after it was started
# again. On stdin and stdout the client may know the key; a server that others reach takes it from its secrets.
server = MCPServer(
    "booking",
    instructions="Books tables and tells opening hours.",
    log_level="WARNING",
    request_state_security=RequestStateSecurity(keys=["the booking desk of this example"], ttl=7 * 24 * 3600),
)

HOURS = {"Luigi's": "17:00 to 23:00", "Sakura": "12:00 to 22:00"}
bookings: list[str] = []  # a desk that forgets: gone when the server stops
waiting = 0


def iso_date(value: object) -> dt.date:
    return value if isinstance(value, dt.date) else dt.date.fromisoformat(str(value))  # pydantic takes Unix times too


# One definition for the tool's arguments and the forms: a wrong value is refused the same way whoever gives it. MCP's
# forms are flat and know "format" and "minimum", but no "pattern". A client may check them; pydantic does it once more.
Date = Annotated[dt.date, BeforeValidator(iso_date), Field(description="Day of the booking, e.g. 2026-12-24")]
People = Annotated[int, Field(ge=1, le=20, description="Number of people")]


class When(BaseModel):
    date: Date


class HowMany(BaseModel):
    people: People


class Details(BaseModel):
    date: Date
    people: People


class Confirmation(BaseModel):
    confirm: Annotated[bool, Field(description="Book this table?")]


# A resolver may run again on every round of one call, so it only computes; what has an effect stands in the tool. A
# resolver takes the tool's arguments by their names.
async def ask_details(restaurant: str, date: dt.date | None, people: int | None) -> Elicit[Any] | Details:
    if date is None and people is None:
        return Elicit(f"When would you like to eat at {restaurant}, and how many will you be?", Details)
    if date is None:
        return Elicit(f"When would you like to eat at {restaurant}?", When)
    if people is None:
        return Elicit(f"How many people will come to {restaurant}?", HowMany)
    return Details(date=date, people=people)  # nothing to ask


# With `ElicitationResult` a refusal is a value. Without it a declined question would be an error of the tool.
Answer = Annotated[ElicitationResult[Any], Resolve(ask_details)]


async def ask_confirmation(
    restaurant: str, date: dt.date | None, people: int | None, answer: Answer
) -> Elicit[Confirmation] | None:
    if not isinstance(answer, AcceptedElicitation):
        return None  # do not ask somebody who has just said no
    return Elicit(f"Book {describe(restaurant, date, people, answer.data)}?", Confirmation)


def describe(restaurant: str, date: dt.date | None, people: int | None, form: BaseModel) -> str:
    details = Details.model_validate({"date": date, "people": people} | form.model_dump())
    return f"{restaurant}, {details.date}, {details.people} {'person' if details.people == 1 else 'people'}"


@server.tool()
async def book_table(
    restaurant: str,
    date: Date | None = None,
    people: People | None = None,
    *,
    answer: Answer,
    confirmation: Annotated[ElicitationResult[Confirmation], Resolve(ask_confirmation)],
) -> str:
    """Book a table. Leave out what the user did not say: the user is asked for it, and to confirm."""
    if not isinstance(answer, AcceptedElicitation):
        return f"No booking was made: the question for the details was answered with {answer.action!r}."
    if not isinstance(confirmation, AcceptedElicitation):
        return f"No booking was made: the question to confirm was answered with {confirmation.action!r}."
    if not confirmation.data.confirm:
        return "No booking was made: the user did not confirm it."
    booking = describe(restaurant, date, people, answer.data)
    bookings.append(booking)
    return f"Booked: {booking} (booking {len(bookings)})"


@server.tool()
async def opening_hours(restaurant: str) -> str:
    """Tell when a restaurant is open, and how many guests wait for a table."""
    if restaurant not in HOURS:  # a ToolError reaches the model with its text; any other exception would be hidden
        raise ToolError(f"no restaurant {restaurant!r} here, only {' and '.join(HOURS)}")
    return f"{restaurant} is open from {HOURS[restaurant]}; {waiting} waiting for a table"


@server.tool()
async def wait_for_table(seconds: Annotated[float, Field(ge=0, le=3600)], ctx: Context) -> str:
    """Wait for a free table. Reports its progress; may be cancelled."""
    global waiting
    waiting += 1
    try:
        for step in range(10):
            await ctx.report_progress(step, 10, f"{10 - step} ahead of you")
            await asyncio.sleep(seconds / 10)
        await ctx.report_progress(10, 10, "your table is free")
    finally:
        waiting -= 1  # a cancelled guest leaves the queue: the client's cancel arrives here as an exception
    return f"A table is free after {seconds:g} s."


if __name__ == "__main__":
    server.run()
