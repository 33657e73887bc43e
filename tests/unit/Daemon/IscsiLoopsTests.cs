using System.Net;
using BlockServer.Blockd;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Io;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>iSCSI sessions with several loops: a session lives where its volume's store lives, so that stores on different
/// loops are served side by side.</summary>
public sealed class IscsiLoopsTests
{
    private const int Loops = 3;

    [Fact]
    public async Task Sessions_are_spread_over_the_loops_of_their_volumes()
    {
        await using TestDaemon test = await TestDaemon.StartAsync($"loops={Loops}", "iscsi=127.0.0.1:0");
        List<StoreHost> hosts = [test.Daemon.Stores.All.Single()];
        while (hosts.Count < Loops)
            hosts.Add(await test.Daemon.Disks.AddAsync(new AddDisk(test.PathOf($"disk{hosts.Count}.blk"), null, 80 * Units.MiB)));
        Assert.Equal(Loops, hosts.Select(h => h.Thread).Distinct().Count());

        IPEndPoint portal = IPEndPoint.Parse(test.Daemon.Listeners.Single(l => l.Protocol == "iscsi").Address);
        var clients = new List<(RawInitiator Initiator, VolumeRecord Volume)>();
        for (int i = 0; i < 2 * Loops; i++) // two volumes and so two sessions on each loop
        {
            VolumeRecord volume = await test.CreateAsync($"v{i}", store: hosts[i % Loops].StoreId);
            clients.Add((LogIn(portal.Port, test.Daemon.Settings.IscsiPrefix + ":" + volume.Name), volume));
        }

        for (int i = 0; i < clients.Count; i++) Write(clients[i].Initiator, (byte)(0x50 + i));
        IReadOnlyList<Session> sessions = test.Daemon.Sessions.List();
        Assert.Equal(clients.Count, sessions.Count);
        foreach (LoopThread thread in hosts.Select(h => h.Thread)) Assert.Equal(2, sessions.Count(s => s.Thread == thread));
        for (int i = 0; i < clients.Count; i++)
        {
            // What came through the session is what lies in the store of that loop.
            StoreHost host = hosts[i % Loops];
            Assert.Equal(host.Thread, sessions.Single(s => s.Volumes.Contains(clients[i].Volume.Id)).Thread);
            var data = new byte[Units.BlockBytes];
            IBlockDevice device = await host.Thread.InvokeAsync(() => new ValueTask<IBlockDevice>(host.Store.OpenVolume(clients[i].Volume.Id)!));
            Assert.Equal(IoStatus.Ok, (await host.Thread.InvokeAsync(() => device.ReadAsync(0, data))).Status);
            Assert.Equal((byte)(0x50 + i), data[100]);
        }

        foreach ((RawInitiator initiator, _) in clients) initiator.Dispose();
    }

    private static RawInitiator LogIn(int port, string target)
    {
        var initiator = new RawInitiator(port, target, "iqn.2026-11.org.example:client", isid: 1);
        Assert.Equal(0, initiator.Status);
        return initiator;
    }

    /// <summary>Takes the unit attention of a new session, then writes the first block.</summary>
    private static void Write(RawInitiator initiator, byte content)
    {
        Assert.Single(initiator.TakeAttentions());
        var data = new byte[Units.BlockBytes];
        data.AsSpan().Fill(content);
        Assert.Equal(0, initiator.Send("2A000000000000000800", data).Status);
    }
}
