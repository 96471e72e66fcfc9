"""A command over asyncssh: so many, so many at once, on connections with five channels each: a server allows ten by default, and counts one that has ended for a while.

Prints the 50th and 95th percentile in milliseconds, and how many in a second.
"""

import asyncio
import sys
import time

import asyncssh

CHANNELS = 5


async def main(host, port, login, key, known_hosts, command, count, at_once):
    def connect():
        return asyncssh.connect(host, port=port, username=login, client_keys=[key], known_hosts=known_hosts, config=None, agent_path=None)

    connections = [await connect() for _ in range(-(-at_once // CHANNELS))]
    todo = iter(range(count))
    took = []

    async def worker(connection):
        for _ in todo:
            began = time.perf_counter()
            ran = await connection.run(command)
            if ran.exit_status != 0:
                raise RuntimeError(f"it ended with {ran.exit_status}")
            took.append(time.perf_counter() - began)

    # What is done for the first time is not counted.
    for connection in connections:
        await connection.run(command)
    began = time.perf_counter()
    await asyncio.gather(*(worker(connections[n % len(connections)]) for n in range(at_once)))
    seconds = time.perf_counter() - began
    took.sort()
    print(took[len(took) // 2] * 1e3, took[len(took) * 95 // 100] * 1e3, count / seconds)
    for connection in connections:
        connection.close()


host, port, login, key, known_hosts, command, count, at_once = sys.argv[1:]
asyncio.run(main(host, int(port), login, key, known_hosts, command, int(count), int(at_once)))
