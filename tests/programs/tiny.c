/* The smallest program: what a start costs shows best on it. */
int main(void)
{
    return 0;
}
