using System.Net;
using System.Net.Sockets;
using System.Text;
using BlockServer.Blockd;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Io;
using BlockServer.Protocols.Iscsi;
using BlockServer.Protocols.Iscsi.Scsi;
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
        var clients = new List<(Socket Socket, VolumeRecord Volume)>();
        for (int i = 0; i < 2 * Loops; i++) // two volumes and so two sessions on each loop
        {
            VolumeRecord volume = await test.CreateAsync($"v{i}", store: hosts[i % Loops].StoreId);
            clients.Add((LogIn(portal, test.Daemon.Settings.IscsiPrefix + ":" + volume.Name), volume));
        }

        for (int i = 0; i < clients.Count; i++) Write(clients[i].Socket, (byte)(0x50 + i));
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

        foreach ((Socket socket, _) in clients) socket.Dispose();
    }

    private static Socket LogIn(IPEndPoint portal, string target)
    {
        var socket = new Socket(SocketType.Stream, ProtocolType.Tcp) { NoDelay = true, ReceiveTimeout = 60_000 };
        socket.Connect(portal);
        byte[] text = Encoding.UTF8.GetBytes($"InitiatorName=iqn.2026-11.org.example:client\0TargetName={target}\0");
        var bhs = new byte[48];
        new LoginRequestPdu(true, false, IscsiStage.Operational, IscsiStage.FullFeature, 0, 1, 0, 1, 0, 1, 0).WriteTo(bhs, text.Length);
        socket.Send([.. bhs, .. text, .. new byte[IscsiWire.PadOf(text.Length)]]);
        LoginResponsePdu answer = LoginResponsePdu.Read(Take(socket));
        Assert.Equal(IscsiLoginStatus.Success, answer.Status);
        Assert.True(answer.IsTransit);
        return socket;
    }

    /// <summary>Takes the unit attention of a new session, then writes the first block.</summary>
    private static void Write(Socket socket, byte content)
    {
        var bhs = new byte[48];
        new ScsiCommandPdu(false, true, false, false, TaskAttribute.Simple, 0, 1, 0, 1, 0).WriteTo(bhs, new byte[6], 0);
        socket.Send(bhs);
        Assert.Equal(ScsiStatus.CheckCondition, ScsiResponsePdu.Read(Take(socket)).Status);
        var data = new byte[Units.BlockBytes];
        data.AsSpan().Fill(content);
        new ScsiCommandPdu(false, true, false, true, TaskAttribute.Simple, 0, 2, (uint)data.Length, 2, 0)
            .WriteTo(bhs, [0x2A, 0, 0, 0, 0, 0, 0, 0, 8, 0], data.Length);
        socket.Send([.. bhs, .. data]);
        Assert.Equal(ScsiStatus.Good, ScsiResponsePdu.Read(Take(socket)).Status);
    }

    /// <summary>The header of the next PDU; its data is read away.</summary>
    private static byte[] Take(Socket socket)
    {
        byte[] bhs = Read(socket, 48);
        Read(socket, IscsiHeader.Read(bhs).PaddedDataBytes);
        return bhs;
    }

    private static byte[] Read(Socket socket, int count)
    {
        var bytes = new byte[count];
        for (int have = 0; have < count;)
        {
            int got = socket.Receive(bytes, have, count - have, SocketFlags.None);
            Assert.NotEqual(0, got);
            have += got;
        }

        return bytes;
    }
}
