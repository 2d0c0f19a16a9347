import concurrent.futures
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor


def work():
    subprocess.run(["setsid", "sleep", sys.argv[2]])
    time.sleep(100)


if __name__ == "__main__":
    with ProcessPoolExecutor(max_workers=2) as executor:
        futures = [executor.submit(work) for _ in range(5)]
        for future in concurrent.futures.as_completed(futures, timeout=float(sys.argv[1])):
            print(future.result())
