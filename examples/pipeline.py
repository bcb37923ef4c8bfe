"""Channels without any agent: two workers, and one `select` that hears their results, a clock and a deadline.

python examples/pipeline.py
"""

import random
import threading
import time

from channels import Channel, after, select, tick

jobs: Channel[int] = Channel(100)
results: Channel[str] = Channel()  # a rendezvous: a worker goes on when its result has been taken


def work(name: str) -> None:
    for number in jobs:  # until it is closed and empty
        time.sleep(random.uniform(0.05, 0.25))
        results.send(f"{name}: the square of {number} is {number * number}")


def main() -> None:
    workers = [threading.Thread(target=work, args=(name,), daemon=True) for name in ("one", "two")]
    for worker in workers:
        worker.start()
    for number in range(1, 11):
        jobs.send(number)
    jobs.close()

    clock, deadline = tick(0.5), after(5.0)
    for _ in range(10):
        while True:
            chosen = select(results, clock, deadline)
            if chosen.case is results:
                print(chosen.value)
                break
            if chosen.case is deadline:
                raise SystemExit("took too long")
            print("... half a second")
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
