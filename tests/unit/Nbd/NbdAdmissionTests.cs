using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Protocols.Nbd;
using BlockServer.Tests.Simulated;
using Xunit;
using static BlockServer.Tests.Unit.Nbd.NbdWorld;

namespace BlockServer.Tests.Unit.Nbd;

/// <summary>Requests that wait at the door of their volume, over NBD. What is answered is counted against the simulated clock.</summary>
public sealed class NbdAdmissionTests
{
    private const ulong Second = 1_000_000_000;

    [Fact]
    public void A_limit_holds_for_all_connections_of_a_volume_together()
    {
        var loop = new SimLoop(1);
        var door = new VolumeAdmission(loop);
        door.SetLimits(new QosLimits(Iops: 100));
        NbdWorld[] worlds = [.. Enumerable.Range(0, 3).Select(_ => new NbdWorld(loop: loop) { Admission = door }.Enter())];
        ulong began = loop.NowNanos;
        int answered = 0;
        foreach (NbdWorld world in worlds)
        {
            for (ulong i = 0; i < 100; i++) world.Send(world.RequestBytes(NbdCommand.Read, i, 4096 * i, 4096));
            _ = CountAsync(world);
        }

        Assert.True(loop.RunUntil(() => loop.NowNanos - began >= 2 * Second));
        Assert.InRange(answered, 190, 215);
        Assert.True(door.Waiting <= worlds.Length); // one of each connection: its socket is not read meanwhile
        door.SetLimits(null);
        Assert.True(loop.RunUntil(() => answered == 300));

        async Task CountAsync(NbdWorld world)
        {
            var reply = new byte[16 + 4096];
            for (int have = 0; ;)
            {
                int got = await world.Client.ReceiveAsync(reply.AsMemory(have));
                if (got <= 0) return;
                have = (have + got) % reply.Length;
                if (have == 0) answered++;
            }
        }
    }

    [Fact]
    public void Who_waits_holds_no_memory_and_other_volumes_go_on()
    {
        var loop = new SimLoop(2);
        var limited = new NbdWorld(loop: loop) { Admission = Closed(loop) };
        var other = new NbdWorld(loop: loop) { Admission = new VolumeAdmission(loop) };
        limited.Enter();
        other.Enter();
        byte[] large = Pattern(1 << 20, 1);
        _ = limited.Client.SendAsync(Batch(limited.RequestBytes(NbdCommand.Write, 1, 0, (ulong)large.Length, 0, large)));
        Assert.True(loop.RunUntil(() => limited.Admission.Waiting == 1));
        Assert.Equal(0, loop.Buffers.LentCount);
        for (int i = 0; i < 20; i++) Assert.Equal(NbdError.None, other.Write(0, Pattern(8192, i)));
        Assert.Equal(1, limited.Admission.Waiting);
        limited.Admission.SetLimits(null);
        Assert.Equal(NbdError.None, limited.Answer(1, 0));
        Assert.Equal(large, limited.Read(0, large.Length));
        Assert.Equal((0, 0), (limited.Admission.Inside, limited.Admission.Waiting));
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void A_session_that_ends_takes_its_waiting_request_with_it(bool isCut)
    {
        var world = new NbdWorld(3);
        world.Admission = Closed(world.Loop);
        world.Enter();
        byte[] data = Pattern(4096, 2);
        world.Send(world.RequestBytes(NbdCommand.Write, 1, 0, 4096, 0, data));
        Assert.True(world.Loop.RunUntil(() => world.Admission.Waiting == 1));
        if (isCut) world.Session.Cut("cut by the administrator");
        else world.Session.RequestStop();
        if (!isCut) Assert.Equal(NbdError.Shutdown, world.Answer(1, 0));
        Assert.Equal(isCut ? "cut by the administrator" : "the server is shutting down", world.End());
        Assert.Equal((0, 0), (world.Admission.Waiting, world.Admission.Inside));
        Assert.Equal(0, world.Loop.Buffers.LentCount);
        world.Admission.SetLimits(null);
        world.Loop.RunToQuiescence();
        var stored = new byte[4096];
        world.Loop.Run(world.Device.ReadAsync(0, stored));
        Assert.Equal(new byte[4096], stored);
    }

    [Fact]
    public void A_connection_that_breaks_while_its_request_waits_ends_when_that_has_been_let_in()
    {
        var world = new NbdWorld(4);
        world.Admission = Closed(world.Loop);
        world.Enter();
        world.Send(world.RequestBytes(NbdCommand.Read, 1, 0, 4096));
        Assert.True(world.Loop.RunUntil(() => world.Admission.Waiting == 1));
        world.Client.Break();
        world.Admission.SetLimits(new QosLimits(Iops: 10));
        Assert.NotEqual("", world.End());
        Assert.Equal((0, 0), (world.Admission.Waiting, world.Admission.Inside));
        Assert.Equal(0, world.Loop.Buffers.LentCount);
    }

    [Fact]
    public void A_flush_is_let_in_and_keeps_its_place_behind_what_waits()
    {
        var world = new NbdWorld(5);
        world.Admission = Closed(world.Loop);
        world.Enter();
        Assert.Equal(NbdError.None, world.Ask(NbdCommand.Flush, 0, 0));
        world.Send(world.RequestBytes(NbdCommand.Write, 1, 0, 4096, 0, Pattern(4096, 3)), world.RequestBytes(NbdCommand.Flush, 2, 0, 0));
        Assert.True(world.Loop.RunUntil(() => world.Admission.Waiting == 1));
        world.Loop.Run(world.Loop.DelayAsync(Second));
        Assert.Equal(1, world.Device.Flushes);
        world.Admission.SetLimits(null);
        byte[] replies = world.Receive(32); // in any order
        Assert.Equal([(byte)1, (byte)2], new[] { replies[15], replies[31] }.Order());
        Assert.Equal(2, world.Device.Flushes);
    }

    [Fact]
    public void Bytes_that_are_refused_are_not_charged()
    {
        var world = new NbdWorld(6);
        world.Admission = new VolumeAdmission(world.Loop);
        world.Admission.SetLimits(new QosLimits(Iops: 10));
        world.Enter();
        for (int i = 0; i < 100; i++) Assert.Equal(NbdError.Invalid, world.Ask(NbdCommand.Read, 1UL << 40, 4096));
        Assert.Equal((0UL, 0), (world.Admission.Throttled, world.Admission.Inside));
    }

    /// <summary>A door that lets nothing in for eight minutes.</summary>
    private static VolumeAdmission Closed(SimLoop loop)
    {
        var door = new VolumeAdmission(loop);
        door.SetLimits(new QosLimits(BytesPerSecond: QosLimits.BytesPerSecondMin));
        Check.That(door.Enter(new AdmissionWaiter(() => { }), 32 << 20)); // 512 seconds' worth
        door.Exit(32 << 20);
        return door;
    }

    private static SendBatch Batch(byte[] bytes)
    {
        var batch = new SendBatch();
        batch.Add(bytes);
        return batch;
    }
}
