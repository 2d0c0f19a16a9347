/* The smallest program, on which the cost of a start is most visible. */
int main(void)
{
    return 0;
}
