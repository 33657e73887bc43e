using System.Net;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Io;
using BlockServer.Protocols.Nbd;

namespace BlockServer.Blockd;

/// <summary>
/// NBD as the daemon offers it: listeners and handshakes on the first loop; a session runs on the loop of its volume's
/// store, to which its socket moves. Lives on the first loop, except where said.
/// </summary>
internal sealed class NbdFrontEnd(
    LoopThread thread, VolumeDirectory directory, SharedVolumes volumes, Sessions sessions, Meters meters, NbdOptions options,
    bool isClientProven, bool insecure, string? defaultExport, Action<string> log) : INbdExports
{
    private readonly List<SocketListener> _listeners = [];

    // Beyond this machine TLS is required, whatever is optional within it.
    private readonly NbdOptions _beyond = insecure ? options : options with { TlsMode = NbdTlsMode.Required };
    private bool _isStopping;

    /// <summary>Listens and accepts until <see cref="StopAcceptingAsync"/>. Any thread. Throws <see cref="IOException"/>.</summary>
    public Task<ListenerInfo> ListenAsync(ListenAddress address) => thread.InvokeAsync(() =>
    {
        SocketListener listener = address.Tcp is { } endPoint
            ? SocketListener.ListenTcp(thread.Loop, endPoint)
            : SocketListener.ListenUnix(thread.Loop, address.UnixPath!);
        return new ValueTask<ListenerInfo>(Begin(listener));
    });

    /// <summary>Takes over a listening socket of systemd. Any thread. Throws <see cref="IOException"/>; refused beyond
    /// loopback unless clients prove themselves.</summary>
    public Task<ListenerInfo> ListenAsync(int fd) => thread.InvokeAsync(() =>
    {
        SocketListener listener = SocketListener.FromFd(thread.Loop, fd);
        if (IsLocal(listener) || insecure || isClientProven) return new ValueTask<ListenerInfo>(Begin(listener));
        string refused = listener.Address;
        listener.Close();
        throw new IOException($"socket {refused} of systemd: {SettingsReader.BeyondHelp}");
    });

    /// <summary>Serves one connected socket to its end; the reason. Any thread. Throws <see cref="IOException"/> when it
    /// is none: a pipe goes one way only.</summary>
    public Task<string> ServeOneAsync(int fd) => thread.InvokeAsync(async () =>
    {
        if (File.ResolveLinkTarget($"/proc/self/fd/{fd}", false) is not { } target || !target.Name.StartsWith("socket:", StringComparison.Ordinal))
            throw new IOException("--stdio: standard input is not a connected socket; clients such as nbdcopy -- [ blockd --stdio ... ] make one");
        SocketConnection connection = SocketConnection.Attach(thread.Loop, fd, "unix:stdio");
        _ = sessions.Enter(connection.Peer, thread.Loop.NowNanos, out string address);
        return await ServeAndLeaveAsync(connection, "stdio", address, options with { DefaultIdentity = NbdClients.Unix });
    });

    /// <summary>Closes every listener. Any thread.</summary>
    public Task StopAcceptingAsync() => thread.InvokeAsync(() =>
    {
        _isStopping = true;
        foreach (SocketListener listener in _listeners) listener.Close();
        return default;
    });

    /// <inheritdoc/>
    public async ValueTask<NbdExport?> FindAsync(string name, string? identity)
    {
        if (_isStopping) return null;
        int at = name.IndexOf('@', StringComparison.Ordinal);
        string? snapshot = at < 0 ? null : name[(at + 1)..];
        string volume = at < 0 ? name : name[..at];
        VolumeRecord? record = volume.Length > 0 ? directory.Find(volume) : at < 0 ? DefaultVolume() : null;
        if (record is null || !IsFor(record, identity) || volumes.ThreadOf(record) is not { } there) return null;
        if (await OnLoopAsync(there, () => OpenThereAsync(there, record, snapshot)) is not { } opened) return null;
        return new NbdExport
        {
            Name = snapshot is null ? record.Name : $"{record.Name}@{snapshot}",
            Description = record.Description ?? "",
            Device = opened.Device,
            SizeBytes = opened.Device.SizeBytes,
            IsReadOnly = snapshot is not null || record.Export.ReadOnly || record.IsImage,
            Meter = snapshot is null ? meters.Of(record.Id) : null,
            Admission = opened.Volume.Door,
            Contexts = new SnapshotContexts(this, opened.Volume, opened.Snapshot?.Uuid),
            Tag = new ExportTag(record.Id, there, opened.Snapshot),
        };
    }

    /// <summary>Volumes only: of snapshots there may be ten thousand. Their names are what the volume's metadata contexts
    /// say.</summary>
    public IReadOnlyList<NbdListing> List(string? identity) =>
        [.. directory.List().Where(v => IsFor(v, identity)).Select(v => new NbdListing(v.Name, v.Description ?? ""))];

    /// <inheritdoc/>
    public string? WhyNot(string name, string? identity) =>
        directory.Find(name) is { } record && IsFor(record, identity) ? VolumeDirectory.ImportFault(record)?.Detail : null;

    private static bool IsFor(VolumeRecord volume, string? identity) => volume.Export.Nbd && NbdClients.Admits(volume.Export, identity);

    private VolumeRecord? DefaultVolume()
    {
        if (defaultExport is not null) return directory.Find(defaultExport);
        IReadOnlyList<VolumeRecord> all = directory.List();
        return all.Count == 1 ? all[0] : null; // with several, guessing would attach somebody to the wrong disk
    }

    /// <summary>Does something on another loop and goes on here.</summary>
    private ValueTask<T> OnLoopAsync<T>(LoopThread there, Func<ValueTask<T>> work) => SharedVolumes.OnLoopOf(there, thread, work);

    /// <summary>On the loop of the volume. Null also while its reservations cannot be read, unless NBD need not heed them; they
    /// hold for its snapshots too.</summary>
    private async ValueTask<Opened?> OpenThereAsync(LoopThread there, VolumeRecord record, string? snapshotName)
    {
        SharedVolume? volume = await volumes.OpenAsync(record, there);
        if (volume is null || (volume.Fault is not null && !record.Export.NbdIgnoresReservations)) return null;
        if (snapshotName is null) return new Opened(volume, new GatedDevice(SharedVolumes.DeviceOf(volume, record), volume.Gate), null);
        (SnapshotInfo Info, IBlockDevice Device)? snapshot = await volumes.OpenSnapshotAsync(volume, s => s.Name == snapshotName && IsShown(s));
        return snapshot is not { } found ? null : new Opened(volume, new GatedDevice(found.Device, volume.Gate), found.Info);
    }

    private bool IsShown(SnapshotInfo snapshot) => !directory.IsCutForMove(snapshot.Uuid);

    private static bool IsLocal(SocketListener listener) =>
        listener.BoundEndPoint is not { } endPoint || IPAddress.IsLoopback(endPoint.Address);

    private ListenerInfo Begin(SocketListener listener)
    {
        bool isLocal = IsLocal(listener);
        NbdOptions here = isLocal ? options : _beyond;
        if (listener.BoundEndPoint is null) here = here with { DefaultIdentity = NbdClients.Unix };
        _listeners.Add(listener);
        _ = AcceptAsync(listener, here);
        return new ListenerInfo("nbd", listener.Address, here.TlsMode != NbdTlsMode.None, insecure && !isLocal);
    }

    private async Task AcceptAsync(SocketListener listener, NbdOptions here)
    {
        try
        {
            while (await listener.AcceptAsync() is { } connection)
            {
                if (sessions.Enter(connection.Peer, thread.Loop.NowNanos, out string address) is { } refusal)
                {
                    log($"nbd {connection.Peer}: refused, {refusal}");
                    connection.Close();
                    continue;
                }

                _ = ServeAndLeaveAsync(connection, listener.Address, address, here);
            }
        }
        catch (IOException e)
        {
            log($"nbd: {listener.Address} is not served any more: {e.Message}");
            sessions.ListenerFailed?.Invoke(listener.Address, e.Message);
        }
    }

    private async Task<string> ServeAndLeaveAsync(SocketConnection connection, string listener, string address, NbdOptions here)
    {
        string peer = connection.Peer;
        string reason;
        try
        {
            reason = await ServeAsync(connection, listener, address, here);
        }
#pragma warning disable CA1031 // A bug ends its session and is told, nothing else.
        catch (Exception bug)
#pragma warning restore CA1031
        {
            reason = "dropped by a bug: " + bug;
        }

        sessions.Leave(address);
        if (listener != "stdio") log($"nbd {peer}: {reason}");
        return reason;
    }

    /// <summary>Ends on this loop.</summary>
    private async Task<string> ServeAsync(SocketConnection connection, string listener, string address, NbdOptions here)
    {
        var handshake = new NbdHandshake(thread.Loop, connection, this, here);
        LinkedListNode<Handshake> waiting = sessions.BeginHandshake(new Handshake(thread, handshake.RequestStop, handshake.Cut, connection.Peer));
        if (sessions.Denied?.IsPeer(connection.Peer) == true) handshake.Cut("its address is denied"); // since it was let in
        NbdNegotiated? negotiated = await handshake.RunAsync();
        sessions.EndHandshake(waiting);
        if (handshake.FailedToProve) sessions.Failed(address, thread.Loop.NowNanos);
        if (negotiated is null) return handshake.EndReason ?? "left during the handshake";

        var tag = (ExportTag)negotiated.Export.Tag!;
        string peer = connection.Peer;
        if (tag.Thread == thread)
            return await TransmitAsync(thread, negotiated.Connection, negotiated, tag, peer, listener);

        var tls = negotiated.Connection as TlsConnection;
        int fd = tls?.DetachSocket() ?? connection.Detach();
        var ended = new LoopEvent<string>();
        tag.Thread.Post(() => _ = RunThereAsync());
        return await ended.WaitAsync();

        async Task RunThereAsync()
        {
            KernelLoop loop = tag.Thread.Loop;
            tls?.AttachSocket(loop, fd, peer);
            IConnection moved = (IConnection?)tls ?? SocketConnection.Attach(loop, fd, peer);
            string reason;
            try
            {
                reason = await TransmitAsync(tag.Thread, moved, negotiated, tag, peer, listener);
            }
#pragma warning disable CA1031 // As in ServeAndLeaveAsync.
            catch (Exception bug)
#pragma warning restore CA1031
            {
                reason = "dropped by a bug: " + bug;
            }

            thread.Post(() => ended.Set(reason));
        }
    }

    /// <summary>On <paramref name="there"/>.</summary>
    private async Task<string> TransmitAsync(
        LoopThread there, IConnection connection, NbdNegotiated negotiated, ExportTag tag, string peer, string listener)
    {
        var transmission = new NbdTransmission(there.Loop, connection, negotiated, options);
        uint[] volume = tag.Snapshot is null ? [tag.VolumeId] : [];
        SnapshotUse[] read = tag.Snapshot is { } snapshot ? [new SnapshotUse(tag.VolumeId, snapshot.Uuid, snapshot.Name)] : [];
        var session = new Session(
            sessions.NextId(), () => volume, null, peer, listener, negotiated.IsTls, negotiated.Identity,
            SystemClock.Instance.UtcNow, new SessionHandle("nbd", there, transmission.Cut, transmission.RequestStop, Figures), () => read);
        sessions.Add(session);
        try
        {
            if (volumes.IsClosed(tag.VolumeId))
            {
                connection.Close();
                return "a stream has begun to come into the volume";
            }

            if (sessions.Denied?.IsSession(session) == true)
            {
                connection.Close();
                return "its address is denied";
            }

            if (directory.Find(tag.VolumeId) is { } now && !session.MayUse(now)) // since the handshake
            {
                connection.Close();
                return Session.NotItsVolume;
            }

            string reason = await transmission.RunAsync();
            sessions.Ended(session, reason);
            return reason;
        }
        finally
        {
            sessions.Remove(session);
        }

        SessionFigures Figures()
        {
            NbdCounters counters = transmission.Counters;
            return new SessionFigures(counters.Reads, counters.ReadBytes, counters.Writes, counters.WrittenBytes, counters.InFlight);
        }
    }

    private sealed record ExportTag(uint VolumeId, LoopThread Thread, SnapshotInfo? Snapshot);

    private sealed record Opened(SharedVolume Volume, IBlockDevice Device, SnapshotInfo? Snapshot);

    /// <summary>What qemu's clients know how to ask: how deep something was written, and for each snapshot (of a snapshot: each
    /// older one) what was written since. A context stands for the snapshot that had the name when it was chosen.</summary>
    private sealed class SnapshotContexts(NbdFrontEnd owner, SharedVolume volume, Guid? view) : INbdContexts
    {
        private const string Depth = "qemu:allocation-depth", Dirty = "qemu:dirty-bitmap:";

        // One answer looks at no more than this, so that others have their turn.
        private const ulong LookBytesMax = 16 * Units.GiB;

        public ValueTask<IReadOnlyList<NbdContext>> ListAsync() => owner.OnLoopAsync(volume.Host.Thread, () =>
        {
            IEnumerable<SnapshotInfo> snapshots = volume.Host.Store.Snapshots(volume.Id).Where(owner.IsShown);
            if (view is { } end) snapshots = snapshots.TakeWhile(s => s.Uuid != end);
            return new ValueTask<IReadOnlyList<NbdContext>>(
                [new NbdContext(Depth, null), .. snapshots.Select(s => new NbdContext(Dirty + s.Name, s.Uuid))]);
        });

        public async ValueTask<IoStatus> MapAsync(
            NbdContext context, ulong offsetBytes, ulong lengthBytes, int runsMax, List<NbdStatusRun> runs)
        {
            ulong length = Math.Min(lengthBytes, LookBytesMax);
            StoreHost host = volume.Host; // wherever it lies now
            if (context.Tag is Guid since)
            {
                var changes = new List<DiffRun>();
                IoStatus compared = await SharedVolumes.OnLoopOf(
                    host.Thread, volume.Thread, () => host.Store.DiffAsync(volume.Id, since, view, offsetBytes, length, runsMax, changes));
                foreach (DiffRun run in changes) runs.Add(new NbdStatusRun(run.LengthBytes, run.IsChanged ? 1u : 0u));
                return compared;
            }

            var depths = new List<DepthRun>();
            IoStatus status = await SharedVolumes.OnLoopOf(
                host.Thread, volume.Thread, () => host.Store.DepthAsync(volume.Id, view, offsetBytes, length, runsMax, depths));
            foreach (DepthRun run in depths) runs.Add(new NbdStatusRun(run.LengthBytes, run.Depth));
            return status;
        }
    }
}
