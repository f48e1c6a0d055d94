"""How a server of the tests takes it that its client is gone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


@asynccontextmanager
async def until_hung_up(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Serve a connection within, until its client ends or breaks it off; closes it then."""
    try:
        yield
    except asyncio.IncompleteReadError:
        pass
    except ConnectionError:
        with suppress(ConnectionError):  # asyncio keeps it once more, and says that it went unnoticed
            await writer.wait_closed()
    finally:
        writer.close()
