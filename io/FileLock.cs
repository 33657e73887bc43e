namespace BlockServer.Io;

/// <summary>
/// Patience with a file that somebody else holds. A process that was killed holds its files until the kernel has ended its
/// last transfers, which may be a moment after the process is gone.
/// </summary>
public static class FileLock
{
    private const int Tries = 20, WaitMillis = 100; // two seconds: transfers end long before, and a living holder keeps it

    /// <summary>Asks <paramref name="take"/> until it says true, for two seconds at most; whether it did. Blocks: not on a
    /// loop.</summary>
    public static bool TryTake(Func<bool> take)
    {
        for (int attempt = 1; !take(); attempt++)
        {
            if (attempt == Tries) return false;
            Thread.Sleep(WaitMillis);
        }

        return true;
    }
}
