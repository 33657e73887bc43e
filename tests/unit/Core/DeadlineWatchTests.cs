using BlockServer.Core;
using BlockServer.Tests.Simulated;
using Xunit;

namespace BlockServer.Tests.Unit.Core;

/// <summary>Deadlines of a connection on a simulated clock.</summary>
public sealed class DeadlineWatchTests
{
    private const ulong Second = 1_000_000_000;

    /// <summary>A far deadline is watched already when a nearer one is set: that one is not noticed with the far one only.</summary>
    [Fact]
    public void A_nearer_deadline_is_noticed_in_time_while_a_far_one_is_watched()
    {
        var loop = new SimLoop(1);
        ulong start = loop.NowNanos, far = start + 60 * Second, near = ulong.MaxValue;
        var noticed = new List<ulong>();
        DeadlineWatch watch = null!;
        watch = new DeadlineWatch(loop, () => Math.Min(near, far), () =>
        {
            noticed.Add((loop.NowNanos - start) / Second);
            if (loop.NowNanos >= near) near = ulong.MaxValue;
            if (loop.NowNanos >= far) far = ulong.MaxValue;
        });
        watch.Look();
        near = start + 5 * Second;
        watch.Look();
        loop.RunToQuiescence();
        Assert.Equal([5UL, 60UL], noticed);
    }

    /// <summary>One that is put off all the time costs a look at the time for which it was armed first, and no more.</summary>
    [Fact]
    public void A_deadline_that_is_put_off_is_looked_at_when_the_timer_elapses()
    {
        var loop = new SimLoop(2);
        ulong until = loop.NowNanos + 10 * Second;
        int looks = 0;
        var watch = new DeadlineWatch(loop, () => until, () =>
        {
            if (++looks == 5) until = ulong.MaxValue;
        });
        for (int i = 0; i < 100; i++)
        {
            until += Second / 10;
            watch.Look();
        }

        Assert.Equal(0, looks);
        loop.RunToQuiescence();
        Assert.Equal(5, looks); // behind the deadline it comes again by itself until that is gone, and then there is nothing left to do
        watch.Look();
        loop.RunToQuiescence();
        Assert.Equal(5, looks);
    }
}
