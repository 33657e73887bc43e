using System.Buffers.Binary;
using System.Globalization;
using BlockServer.Core;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Initiators are told that the store under a thin volume runs low, once, from its real figures.</summary>
public sealed class LowSpaceTests
{
    [Fact]
    public async Task The_threshold_is_told_once_to_everybody_on_the_disk_and_log_sense_has_the_figures()
    {
        await using TestDaemon test = await TestDaemon.StartAsync("iscsi=127.0.0.1:0", "low-space=25");
        await test.CreateAsync("a", 64 << 20);
        await test.CreateAsync("b", 64 << 20);
        using RawInitiator one = Connect(test, "a"), other = Connect(test, "b");
        ulong before = Available(one);
        Assert.Equal((ulong)(await test.Daemon.Stores.All[0].DescribeAsync()).FreeBytes >> 20, before);
        RawReply reply = new(0, [], []);
        int writes = 0;
        for (; writes < 1024 && reply.Code == 0; writes++)
        {
            reply = one.Send($"2A00{writes * 128:X8}0000800000", new byte[] { 1 }.Concat(new byte[65535]).ToArray());
            if (reply.Status != 0) break;
        }

        Assert.Equal((2, 0x3807), (reply.Status, reply.Code));
        Assert.Equal([0x3807], other.TakeAttentions());
        var disk = await test.Daemon.Stores.All[0].DescribeAsync();
        Assert.InRange(disk.FreeBytes, 1UL, disk.DataBytes / 4);
        Assert.Equal(disk.FreeBytes >> 20, Available(one));
        Assert.Contains(test.Daemon.Warnings, w => w.Contains("runs low", StringComparison.Ordinal));
        for (int i = 0; i < 8; i++) Assert.Equal(0, one.Send($"2A00{(writes + i) * 128:X8}0000800000", new byte[65536]).Status);
        Assert.Empty(one.TakeAttentions());
    }

    private static RawInitiator Connect(TestDaemon test, string volume)
    {
        string address = test.Daemon.Listeners.First(l => l.Protocol == "iscsi").Address;
        var raw = new RawInitiator(
            int.Parse(address.Split(':')[^1], CultureInfo.InvariantCulture), "iqn.2026-11.org.blockserver:" + volume);
        Assert.Equal([0x2900], raw.TakeAttentions());
        return raw;
    }

    /// <summary>The available resource count of log page 0C, extents of 1 MiB.</summary>
    private static ulong Available(RawInitiator raw)
    {
        byte[] page = raw.Send("4D004C00000000004000", expected: 64).Data;
        Assert.Equal(0x0C, page[0] & 0x3F);
        Assert.Equal(1, BinaryPrimitives.ReadUInt16BigEndian(page.AsSpan(4)));
        return BinaryPrimitives.ReadUInt32BigEndian(page.AsSpan(8)) * (Units.ExtentBytes >> 20);
    }
}
