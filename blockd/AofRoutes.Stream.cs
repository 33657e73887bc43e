using System.Globalization;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Io;

namespace BlockServer.Blockd;

// Append streams: a call that is upgraded and stays for as long as the stream lasts. So whatever ends the call, as a token that is revoked
// or an address that is denied, ends the stream.
internal sealed partial class AofRoutes
{
    // Of a 101 answer: some headers of ours.
    private const int HeadBytesMax = 2048;

    private async Task StreamAsync(ApiCall call)
    {
        VolumeRecord volume = VolumeOf(call);
        StoreHost host = HostOf(volume);
        if (!call.WantsUpgrade(AppendWire.Protocol))
        {
            call.Say("Upgrade", AppendWire.Protocol);
            throw new ApiException(426, "upgrade-needed", $"send the headers Connection: Upgrade and Upgrade: {AppendWire.Protocol}, and no body");
        }

        if (volume.IsSealed) throw RefusalOf(AppendOutcome.Sealed);
        if (!daemon.AppendStreams.TryEnter()) throw TooMany("of this node");
        try
        {
            if (!call.TryBecomeStream()) throw TooMany("of this address");
            call.Say(AppendWire.VolumeHeader, volume.Id.ToString(CultureInfo.InvariantCulture));
            string peer = call.Peer;
            ((int, int)? taken, Stream stream) = await call.UpgradeAsync(AppendWire.Protocol);
            (string reason, ulong appends, ulong bytes) = await ServeThereAsync(volume, host, call, taken, stream, peer);
            daemon.Audit.Add(new AuditEntry(
                0, TimeProvider.System.GetUtcNow(), call.Caller.Id, call.Address?.ToString() ?? "unix", "END",
                $"/v1/volumes/{volume.Name}/append-stream",
                string.Create(CultureInfo.InvariantCulture, $"{appends} appends, {bytes} bytes: {reason}"), 101, null));
        }
        finally
        {
            daemon.AppendStreams.Leave();
        }
    }

    private async Task<(string Reason, ulong Appends, ulong Bytes)> ServeThereAsync(
        VolumeRecord volume, StoreHost host, ApiCall call, (int Connection, int Runtime)? taken, Stream stream, string peer)
    {
        try
        {
            return await host.Thread.InvokeAsync(() => ServeAsync(volume, host, call, taken, stream, peer));
        }
        catch (ObjectDisposedException) when (taken is not null)
        {
            SocketTakeover.Close(taken.Value); // the loop has ended and has not attached them
            throw;
        }
    }

    /// <summary>On the loop of the volume's disk, from the first frame to the last reply.</summary>
    private async ValueTask<(string Reason, ulong Appends, ulong Bytes)> ServeAsync(
        VolumeRecord volume, StoreHost host, ApiCall call, (int Connection, int Runtime)? taken, Stream stream, string peer)
    {
        KernelLoop loop = host.Thread.Loop;
        IConnection connection = taken is { } ours ? SocketConnection.Attach(loop, ours.Connection, peer) : new RelayConnection(loop, stream, peer, call.Abort);
        VolumeAdmission door = daemon.Volumes.Doors.Of(volume, host.Thread, host);
        var frames = new AppendStream(loop, connection, host.Appends, volume.Id, door, daemon.AppendLimits);
        SocketConnection? runtime = taken is null ? null : SocketConnection.Attach(loop, taken.Value.Runtime, peer);
        daemon.AppendStreams.Add(frames, host.Thread, volume.Id);
        try
        {
            if (runtime is not null) await SayAndWatchAsync(runtime, connection, frames);
            // Whoever stops the streams looks for them afterwards.
            if (daemon.IsStopping || HasMoved(volume, host)) frames.RequestStop();
            return (await frames.RunAsync(), frames.Appends, frames.Bytes);
        }
        finally
        {
            runtime?.Close();
            daemon.AppendStreams.Remove(frames);
        }
    }

    /// <summary>Passes the 101 on, which the HTTP server has said to us, and cuts the stream when the server closes the connection.</summary>
    private static async ValueTask SayAndWatchAsync(SocketConnection runtime, IConnection connection, AppendStream frames)
    {
        var head = new byte[HeadBytesMax];
        int length = 0, got = 1;
        while (got > 0 && !head.AsSpan(0, length).EndsWith("\r\n\r\n"u8) && length < head.Length)
        {
            got = await runtime.ReceiveAsync(head.AsMemory(length));
            length += Math.Max(0, got);
        }

        var batch = new SendBatch(1);
        batch.Add(head.AsMemory(0, length));
        if (got <= 0 || await connection.SendAsync(batch) < 0) frames.Cut("the connection was closed in front of the first frame");
        else _ = WatchAsync();

        async Task WatchAsync()
        {
            while (await runtime.ReceiveAsync(head) > 0)
            {
            }

            frames.Cut("the daemon cut it");
        }
    }

    private static ApiException TooMany(string whose) =>
        new(429, "too-many-streams", $"there are as many append streams {whose} as may be; end one, or append by single calls");
}
