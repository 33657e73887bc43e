using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi.Scsi;

/// <summary>Work of one loop that another one waits for. For what is seldom: it allocates.</summary>
internal static class LoopCall
{
    /// <summary>Runs <paramref name="work"/> on <paramref name="there"/> and answers on <paramref name="here"/>, the loop of the
    /// caller; at once when they are the same. What it throws there is thrown here.</summary>
    public static ValueTask<T> RunAsync<T>(ILoop here, ILoop there, Func<ValueTask<T>> work)
    {
        if (here == there) return work();
        var done = new LoopEvent<(T Answer, Exception? Bug)>();
        there.PostFromAnywhere(() => _ = RunThereAsync(here, work, done));
        return WaitAsync(done);
    }

    private static async ValueTask<T> WaitAsync<T>(LoopEvent<(T Answer, Exception? Bug)> done)
    {
        (T answer, Exception? bug) = await done.WaitAsync();
        return bug is null ? answer : throw new InvalidOperationException(bug.Message, bug);
    }

    private static async Task RunThereAsync<T>(ILoop here, Func<ValueTask<T>> work, LoopEvent<(T Answer, Exception? Bug)> done)
    {
        T answer = default!;
        Exception? bug = null;
        try
        {
            answer = await work();
        }
#pragma warning disable CA1031 // It ends the session that asked.
        catch (Exception e)
#pragma warning restore CA1031
        {
            bug = e;
        }

        here.PostFromAnywhere(() => done.Set((answer, bug)));
    }
}
