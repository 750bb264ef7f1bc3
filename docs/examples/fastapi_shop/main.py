from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from tasks import cancel_unpaid, celery

from celery_delay.exceptions import OutcomeUnknown, StoreUnavailable


@asynccontextmanager
async def lifespan(app):
    celery.delayed.check()  # a wrong setting ends the server now, not at the first order
    yield
    await run_in_threadpool(celery.close)


app = FastAPI(lifespan=lifespan)


@app.post("/orders/{order}", status_code=201)
def place(order: int, pay_within: float = 1800):
    """A plain ``def``: FastAPI runs it in a thread, and the event loop goes on."""
    result = cancel_unpaid.apply_delayed((order,), countdown=pay_within)
    return {"cancellation": result.id, "eta": result.eta}


@app.post("/orders/{order}/later", status_code=201)
async def place_async(order: int, pay_within: float = 1800):
    """In an ``async def``, the call must be handed to a thread."""
    result = await run_in_threadpool(cancel_unpaid.apply_delayed, (order,), countdown=pay_within)
    return {"cancellation": result.id, "eta": result.eta}


@app.post("/cancellations/{task_id}/cancel")
async def pay(task_id: str):
    outcome = await run_in_threadpool(celery.delayed.cancel, task_id, reason="paid")
    if not outcome:
        raise HTTPException(409, outcome.value)
    return {"outcome": outcome.value}


@app.exception_handler(StoreUnavailable)
async def nothing_was_stored(request, exc):
    return JSONResponse({"detail": "try again"}, 503, {"Retry-After": "1"})


@app.exception_handler(OutcomeUnknown)
async def perhaps_stored(request, exc):
    return JSONResponse({"detail": "it may be stored", "task": exc.entry_id.task_id}, 503)
