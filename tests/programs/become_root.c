/* Set-user-ID root: becomes root for good, says "in place", and stays, as what sudo runs does. */
#include <unistd.h>

int main(void)
{
    if (setuid(0))
        return 1;
    if (write(1, "in place\n", 9) != 9)
        return 1;
    for (;;)
        pause();
}
