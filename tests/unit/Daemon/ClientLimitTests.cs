using System.Globalization;
using System.Net;
using System.Net.Sockets;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>The limits of clients that an operator sets hold in the daemon.</summary>
public sealed class ClientLimitTests
{
    private const string Target = "iqn.2026-11.org.blockserver:disk", Two = "iqn.2026-11.org.example:two";

    [Fact]
    public async Task Sessions_commands_and_memory_are_what_the_operator_said()
    {
        await using TestDaemon test = await TestDaemon.StartAsync("iscsi=127.0.0.1:0", "iscsi-sessions=1", "iscsi-commands=3", "loop-memory=70m");
        await test.CreateAsync("disk");
        Assert.Equal(70L << 20, test.Daemon.Stores.All[0].Thread.Loop.Buffers.LimitBytes);
        using var one = new RawInitiator(Port(test), Target);
        Assert.Equal((0, 3U), (one.Status, one.WindowCommands));
        using (var two = new RawInitiator(Port(test), Target, Two)) Assert.Equal(0x0302, two.Status);
        using (var again = new RawInitiator(Port(test), Target)) Assert.Equal(0, again.Status); // in the place of its old session
    }

    [Fact]
    public async Task One_command_at_a_time_is_enough_to_work_with()
    {
        await using TestDaemon test = await TestDaemon.StartAsync("iscsi=127.0.0.1:0", "iscsi-commands=1", "iscsi-window=64k");
        await test.CreateAsync("disk");
        using var one = new RawInitiator(Port(test), Target);
        Assert.Equal(1U, one.WindowCommands);
        Assert.Equal([0x2900], one.TakeAttentions());
        byte[] data = new byte[64 << 10];
        data.AsSpan().Fill(0x77);
        Assert.Equal(0, one.Send("2A000000000000008000", data).Status);
        Assert.Equal(0, one.Send("2A000000008000008000", data).Status);
        Assert.Equal([.. data, .. data], one.Send("28000000000000010000", expected: 128 << 10).Data); // alone it may exceed the window
    }

    [Fact]
    public async Task The_oldest_of_those_that_do_not_negotiate_gives_way()
    {
        // Nothing else would end it while this test looks.
        await using TestDaemon test = await TestDaemon.StartAsync("iscsi=127.0.0.1:0", "connections-negotiating=1", "negotiation-wait=600");
        await test.CreateAsync("disk");
        using var silent = new TcpClient { ReceiveTimeout = 20_000 };
        await silent.ConnectAsync(IPAddress.Loopback, Port(test), TestContext.Current.CancellationToken);
        while (test.Daemon.Sessions.Connections < 1) await Task.Delay(10, TestContext.Current.CancellationToken);
        using var one = new RawInitiator(Port(test), Target);
        Assert.Equal(0, one.Status);
        Assert.Equal(0, silent.Client.Receive(new byte[1]));
    }

    private static int Port(TestDaemon test) =>
        int.Parse(test.Daemon.Listeners.First(l => l.Protocol == "iscsi").Address.Split(':')[^1], CultureInfo.InvariantCulture);
}
