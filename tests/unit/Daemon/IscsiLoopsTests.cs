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

    /// <summary>Volumes that are open on different loops already, for the sessions of their own targets, become LUNs of one target: each
    /// stays where it is, and what comes through either target is the same.</summary>
    [Fact]
    public async Task Volumes_of_several_loops_are_luns_of_one_target()
    {
        const string Disks = "iqn.2026-11.org.example:disks", Client = "iqn.2026-11.org.example:client";
        await using ApiServer server = await ApiServer.StartAsync(null, null, $"loops={Loops}", "iscsi=127.0.0.1:0");
        TestDaemon test = server.Test;
        List<StoreHost> hosts = [test.Daemon.Stores.All.Single()];
        while (hosts.Count < Loops)
            hosts.Add(await test.Daemon.Disks.AddAsync(new AddDisk(test.PathOf($"disk{hosts.Count}.blk"), null, 80 * Units.MiB)));
        int port = IPEndPoint.Parse(test.Daemon.Listeners.Single(l => l.Protocol == "iscsi").Address).Port;
        var own = new List<RawInitiator>();
        var volumes = new List<VolumeRecord>();
        for (int i = 0; i < Loops; i++)
        {
            volumes.Add(await test.CreateAsync($"v{i}", store: hosts[i].StoreId));
            own.Add(LogIn(port, test.Daemon.Settings.IscsiPrefix + $":v{i}"));
            Write(own[i], (byte)(0x10 + i));
        }

        await server.DoneAsync("create_target", "-t", Disks);
        await server.DoneAsync("allow_initiator", "-t", Disks, "-i", "*");
        foreach (VolumeRecord volume in volumes) await server.DoneAsync("add_lun", "-t", Disks, "-v", volume.Name, "--keep-own-target");
        Assert.Equal(Loops, volumes.Select(v => test.Daemon.Volumes.ThreadOf(v)).Distinct().Count());
        using var initiator = new RawInitiator(port, Disks, Client, isid: 7);
        Assert.Equal(0, initiator.Status);
        for (ushort i = 0; i < Loops; i++)
        {
            Assert.NotEmpty(initiator.TakeAttentions(i));
            RawReply read = initiator.Send("28000000000000000800", expected: 4096, lun: i);
            Assert.Equal((0, (byte)(0x10 + i)), (read.Status, read.Data[100]));
            var data = new byte[4096];
            data.AsSpan().Fill((byte)(0x80 + i));
            Assert.Equal(0, initiator.Send("2A000000000800000800", data, lun: i).Status);
            Assert.Equal((byte)(0x80 + i), own[i].Send("28000000000800000800", expected: 4096).Data[4095]);
        }

        // A reservation by the one target holds for the other; the end of its session lets it go.
        Assert.Equal(0, initiator.Send("160000000000", lun: 2).Status);
        Assert.Equal(0x18, own[2].Send("2A000000000000000800", new byte[4096]).Status);
        initiator.Dispose();
        for (int i = 0; i < 1000 && own[2].Send("2A000000000000000800", new byte[4096]).Status != 0; i++) await Task.Delay(10, TestContext.Current.CancellationToken);
        Assert.Equal(0, own[2].Send("2A000000000000000800", new byte[4096]).Status);
        foreach (RawInitiator one in own) one.Dispose();
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
