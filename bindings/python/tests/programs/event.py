import subprocess
import sys
from multiprocessing import Event, Process


def work(event):
    while not event.is_set():
        subprocess.run(["setsid", "sleep", sys.argv[2]])


if __name__ == "__main__":
    event = Event()
    process = Process(target=work, args=(event,))
    process.start()
    process.join(float(sys.argv[1]))
    event.set()
    process.join(1)
    if process.is_alive():
        process.terminate()
    process.join()
    print(process.exitcode)
