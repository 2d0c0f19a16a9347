import subprocess
import sys
from multiprocessing import Process


def work():
    subprocess.run(["setsid", "sleep", sys.argv[2]])


if __name__ == "__main__":
    process = Process(target=work)
    process.start()
    process.join(float(sys.argv[1]))
    process.terminate()
    process.join()
    print(process.exitcode)
