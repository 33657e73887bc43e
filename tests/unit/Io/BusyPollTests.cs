using BlockServer.Io;
using Xunit;

namespace BlockServer.Tests.Unit.Io;

public sealed class BusyPollTests
{
    private const ulong Micro = 1000;

    [Fact]
    public void It_looks_only_after_many_short_waits_and_no_more_after_a_long_one()
    {
        var polling = new BusyPoll(50 * Micro);
        Assert.False(polling.IsWorthwhile);
        for (int i = 0; i < 10; i++) polling.OnWaited(20 * Micro);
        Assert.False(polling.IsWorthwhile);
        for (int i = 0; i < 30; i++) polling.OnWaited(20 * Micro);
        Assert.True(polling.IsWorthwhile);
        polling.OnWaited(3_600_000_000_000);
        Assert.False(polling.IsWorthwhile);
    }

    [Fact]
    public void It_never_looks_where_waits_are_longer()
    {
        var polling = new BusyPoll(50 * Micro);
        for (int i = 0; i < 1000; i++) polling.OnWaited(60 * Micro);
        Assert.False(polling.IsWorthwhile);
    }

    // A look before the next request cost a client of a disk a fifth of its requests one at a time.
    [Fact]
    public void It_does_not_look_where_a_disk_is_asked_between_short_waits()
    {
        var polling = new BusyPoll(50 * Micro);
        for (int i = 0; i < 1000; i++)
        {
            polling.OnDiskAsked();
            polling.OnWaited(Micro);
            Assert.False(polling.IsWorthwhile);
        }

        for (int i = 0; i < 50; i++) polling.OnWaited(Micro);
        Assert.True(polling.IsWorthwhile);
    }

    [Fact]
    public void Zero_is_never()
    {
        var polling = new BusyPoll(0);
        for (int i = 0; i < 1000; i++) polling.OnWaited(0);
        Assert.False(polling.IsWorthwhile);
    }
}
