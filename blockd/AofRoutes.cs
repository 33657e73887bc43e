using System.Buffers;
using System.Globalization;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Blockd;

/// <summary>The admin API's append-only volumes. Bytes go to the loop of the volume's disk and come from there; a large append
/// waits for its turn, so that their memory is bounded.</summary>
internal sealed partial class AofRoutes(Daemon daemon, TargetRoutes targets)
{
    private const int ReadBytesMax = 4 << 20, ReadBytesDefault = 1 << 20, WaitSecondsMax = 30;

    // A volume that moves is followed so often within one call.
    private const int HomesMax = 8;

    // Appends of more than this are received one after another, this many at a time: at most 128 MiB of bodies.
    private const int LargeBytes = 1 << 20, LargeAtOnce = 4;
    private static readonly SemaphoreSlim s_large = new(LargeAtOnce, LargeAtOnce);

    /// <summary>By the key of their route.</summary>
    public Dictionary<string, Func<ApiCall, Task>> Handlers => new(StringComparer.Ordinal)
    {
        ["GET aof"] = ListAsync,
        ["POST aof"] = OpenAsync,
        ["GET volumes/{name}/aof"] = ShowAsync,
        ["GET volumes/{name}/data"] = ReadAsync,
        ["POST volumes/{name}/append"] = AppendAsync,
        ["POST volumes/{name}/append-stream"] = StreamAsync,
        ["POST volumes/{name}/rename"] = RenameAsync,
        ["POST volumes/{name}/seal"] = SealAsync,
    };

    private async Task ListAsync(ApiCall call)
    {
        var found = new List<AofInfo>();
        foreach (IGrouping<Guid, VolumeRecord> there in daemon.Directory.List().Where(v => v.IsAppendOnly && call.Sees(v.Name)).GroupBy(v => v.StoreId))
        {
            if (daemon.Stores.Find(there.Key) is not { } host) continue;
            found.AddRange(await host.Thread.InvokeAsync(() => new ValueTask<AofInfo[]>(
                [.. there.Select(v => host.Appends.AppendInfoOf(v.Id) is { } info ? Describe(v, info) : null).OfType<AofInfo>()])));
        }

        await call.AnswerAsync(new AofList([.. found.OrderBy(f => f.Name, StringComparer.Ordinal)]), ApiJson.Default.AofList);
    }

    private async Task OpenAsync(ApiCall call)
    {
        OpenAof request = await call.ReadAsync(ApiJson.Default.OpenAof);
        VolumeRecord? volume = daemon.Directory.Find(request.Name ?? "");
        if (volume is null || !call.Sees(volume.Name))
        {
            call.MustOwn(request.Name ?? ""); // before anything else is said about the name
            var wanted = new CreateVolume(
                request.Name ?? "", request.SizeBytesMax ?? Units.VolumeBytesMax, Description: request.Description, StoreId: request.StoreId, AppendOnly: true, Thin: request.Thin);
            DirectoryResult made = await daemon.Directory.CreateAsync(wanted);
            // Somebody else may have opened it at the same time.
            volume = made.Fault is { Code: "name-taken" } && call.Sees(wanted.Name) ? daemon.Directory.Find(wanted.Name) : AdminRoutes.Must(made);
        }

        await AnswerAsync(call, volume!);
    }

    private async Task ShowAsync(ApiCall call)
    {
        VolumeRecord volume = VolumeOf(call);
        long wait = WaitOf(call), beyond = call.QueryNumber("beyond") ?? 0;
        await call.AnswerAsync(Describe(volume, await LookAsync(volume, wait == 0 ? null : (ulong)beyond, wait)), ApiJson.Default.AofInfo);
    }

    private async Task ReadAsync(ApiCall call)
    {
        VolumeRecord volume = VolumeOf(call);
        ulong offset = (ulong)(call.QueryNumber("offset") ?? 0);
        long wanted = call.QueryNumber("length") ?? ReadBytesDefault;
        if (wanted is < 1 or > ReadBytesMax) throw new ApiException(400, "invalid-query", "length is 1 to 4194304", "length");
        AppendInfo info = await LookAsync(volume, offset, WaitOf(call));
        if (offset > info.LengthBytes)
            throw new ApiException(416, "beyond-end", $"the volume is {info.LengthBytes} bytes long, and {offset} lies behind that", "offset");
        int length = (int)Math.Min((ulong)wanted, info.LengthBytes - offset);
        byte[] bytes = ArrayPool<byte>.Shared.Rent(Math.Max(1, length));
        try
        {
            if (length > 0) await ReadAsync(volume, offset, bytes.AsMemory(0, length), call.Aborted);
            call.Say(AppendMedia.LengthHeader, info.LengthBytes.ToString(CultureInfo.InvariantCulture));
            call.Say(AppendMedia.SealedHeader, info.IsSealed ? "true" : "false");
            await call.AnswerAsync(AppendMedia.Type, bytes.AsMemory(0, length));
        }
        finally
        {
            ArrayPool<byte>.Shared.Return(bytes);
        }
    }

    private async Task ReadAsync(VolumeRecord volume, ulong offset, Memory<byte> target, CancellationToken aborted)
    {
        IoStatus status = await AtHomeAsync(volume, async host =>
        {
            if (host.Store.OpenVolume(volume.Id) is not { } device) return IoStatus.Unavailable;
            for (int done = 0; done < target.Length;)
            {
                // A MiB at a time, in memory that is fit for the disk; others have their turn in between.
                ulong at = offset + (ulong)done, start = at & ~(ulong)(Units.BlockBytes - 1);
                int edge = (int)(at - start), length = Math.Min(target.Length - done, (int)Units.MiB);
                int whole = (edge + length + Units.BlockBytes - 1) & ~(Units.BlockBytes - 1);
                int from = done;
                IoStatus status = await ThroughDoorAsync(volume, host, (ulong)length, async () =>
                {
                    IoBuffer buffer = await host.Thread.Loop.Buffers.RentAsync(whole);
                    ReadResult read = await device.ReadAsync(start, buffer.Slice(0, whole));
                    buffer.Slice(edge, length).CopyTo(target[from..]);
                    buffer.Return();
                    return read.Status;
                }, IoStatus.Unavailable, aborted);
                if (status != IoStatus.Ok) return status;
                done += length;
            }

            return IoStatus.Ok;
        }, status => status != IoStatus.Ok);
        if (status == IoStatus.Unavailable) throw NoDisk();
        if (status != IoStatus.Ok) throw new ApiException(503, "unreadable", $"a block of it cannot be read ({status}); pfcli scrub_volume finds which");
    }

    private async Task AppendAsync(ApiCall call)
    {
        VolumeRecord volume = VolumeOf(call);
        AppendKey key = KeyOf(call);
        long total = call.BodyLength ?? throw new ApiException(411, "length-needed", "say how long the bytes are (Content-Length)");
        if (total == 0) throw new ApiException(400, "empty-append", "an append has at least one byte");
        int[] lengths = LengthsOf(call, total);
        bool isLarge = total > LargeBytes;
        if (isLarge) await s_large.WaitAsync(call.Aborted);
        try
        {
            byte[] bytes = await call.BytesAsync();
            try
            {
                // Not cancelled when the client goes away: the memory is lent until the answer.
                var results = new List<AppendResult>(lengths.Length);
                await AtHomeAsync(
                    volume,
                    host => ThroughDoorAsync(volume, host, (ulong)total, () => AppendAllAsync(host.Appends, volume.Id, key, bytes, lengths, results), false, call.Aborted),
                    isServed => isServed && results[^1].Outcome is AppendOutcome.Moved or AppendOutcome.NotFound);
                await AnswerAsync(call, results, lengths);
            }
            finally
            {
                ArrayPool<byte>.Shared.Return(bytes);
            }
        }
        finally
        {
            if (isLarge) s_large.Release();
        }
    }

    /// <summary>Does something on the loop of the disk that the volume lies on, and again where it lies then when it moved meanwhile and the
    /// answer <paramref name="mayBeElsewhere"/>: nothing was done, or nothing is lost by asking anew.</summary>
    private async Task<T> AtHomeAsync<T>(VolumeRecord volume, Func<StoreHost, ValueTask<T>> work, Func<T, bool> mayBeElsewhere)
    {
        for (int i = 1; ; i++)
        {
            StoreHost host = HostOf(daemon.Directory.Find(volume.Id) ?? volume);
            T answer = await host.Thread.InvokeAsync(() => work(host));
            if (i == HomesMax || !mayBeElsewhere(answer) || !HasMoved(volume, host)) return answer;
        }
    }

    /// <summary>The volume lies on another disk than <paramref name="host"/> by now.</summary>
    private bool HasMoved(VolumeRecord volume, StoreHost host) => daemon.Directory.Find(volume.Id) is { } now && now.StoreId != host.StoreId;

    /// <summary>On the loop: one operation of so many bytes, let in by the volume's door as those of the other front ends are. Who has gone
    /// away meanwhile gets <paramref name="otherwise"/>.</summary>
    private async ValueTask<T> ThroughDoorAsync<T>(
        VolumeRecord volume, StoreHost host, ulong bytes, Func<ValueTask<T>> work, T otherwise, CancellationToken aborted)
    {
        VolumeAdmission door = daemon.Volumes.Doors.Of(volume, host.Thread, host);
        var turn = new LoopEvent<bool>();
        if (!door.Enter(new AdmissionWaiter(() => turn.Set(true)), bytes)) await turn.WaitAsync();
        try
        {
            return aborted.IsCancellationRequested ? otherwise : await work();
        }
        finally
        {
            door.Exit(bytes);
        }
    }

    /// <summary>On the loop: all that have not landed yet are asked for in one turn, so that they share a batch. <paramref name="results"/> are
    /// those that have landed, and behind them one that was refused.</summary>
    private static async ValueTask<bool> AppendAllAsync(IAppendStore store, uint volumeId, AppendKey key, byte[] bytes, int[] lengths, List<AppendResult> results)
    {
        if (results.Count > 0) results.RemoveAt(results.Count - 1); // it was not refused for good
        var under = new ValueTask<AppendResult>[lengths.Length];
        int first = results.Count, at = lengths[..first].Sum();
        Guid order = Guid.NewGuid(); // of those without a client: they land as far as none is refused
        for (int i = first; i < lengths.Length; i++)
        {
            AppendKey one = key.Client == Guid.Empty ? key : key with { Sequence = key.Sequence + (ulong)i };
#pragma warning disable CA2012 // Several at once; each is awaited exactly once below.
            under[i] = store.AppendAsync(volumeId, one, bytes.AsMemory(at, lengths[i]), order);
#pragma warning restore CA2012
            at += lengths[i];
        }

        for (int i = first; i < under.Length; i++)
        {
            AppendResult result = await under[i];
            if (results.Count == i && (i == first || results[^1].Outcome == AppendOutcome.Done)) results.Add(result);
        }

        return true;
    }

    private static async Task AnswerAsync(ApiCall call, List<AppendResult> results, int[] lengths)
    {
        var landed = new List<AppendedInfo>(results.Count);
        foreach (AppendResult result in results)
        {
            if (result.Outcome != AppendOutcome.Done) break;
            landed.Add(new AppendedInfo(result.OffsetBytes, (uint)lengths[landed.Count], result.IsRepeat));
        }

        ApiException? refused = landed.Count == results.Count ? null : RefusalOf(results[landed.Count].Outcome);
        if (refused is not null && landed.Count == 0) throw refused;
        await call.AnswerAsync(new AppendAnswerInfo(landed, refused?.Code, refused?.Message), ApiJson.Default.AppendAnswerInfo);
    }

    private static ApiException RefusalOf(AppendOutcome outcome)
    {
        AppendProblem problem = AppendProblem.Of(AppendStream.CodeOf(outcome));
        return new ApiException(problem.Status, problem.Code, problem.Detail, problem.Field);
    }

    private static AppendKey KeyOf(ApiCall call)
    {
        string? client = call.Query("client");
        long? sequence = call.QueryNumber("sequence");
        if (client is null && sequence is null) return default;
        if (!Guid.TryParseExact(client, "D", out Guid id) || id == Guid.Empty) throw new ApiException(400, "invalid-query", "client must be a UUID", "client");
        return sequence is >= 1 and <= long.MaxValue - AppendMedia.AppendsMax
            ? new AppendKey(id, (ulong)sequence) : throw new ApiException(400, "invalid-query", "sequence must be 1 for the client's first append, then rising", "sequence");
    }

    private static int[] LengthsOf(ApiCall call, long total)
    {
        if (call.Query("lengths") is not { } text) return [(int)total];
        string[] parts = text.Split(',');
        long sum = 0;
        var lengths = new int[Math.Min(parts.Length, AppendMedia.AppendsMax)];
        for (int i = 0; i < lengths.Length; i++)
        {
            if (!int.TryParse(parts[i], NumberStyles.None, CultureInfo.InvariantCulture, out lengths[i]) || lengths[i] < 1) sum = long.MinValue;
            sum += lengths[i];
        }

        return parts.Length <= AppendMedia.AppendsMax && sum == total ? lengths : throw new ApiException(
            400, "invalid-query", "lengths are 1 to 16 numbers with commas between them that add up to the body", "lengths");
    }

    private async Task RenameAsync(ApiCall call)
    {
        VolumeRecord volume = VolumeOf(call);
        RenameAof request = await call.ReadAsync(ApiJson.Default.RenameAof);
        call.MustOwn(request.NewName ?? "", "newName");
        VolumeRecord? replaced = daemon.Directory.Find(request.NewName ?? "");
        if (replaced is not null && replaced.Id != volume.Id && request.Replace
            && targets.UseOf(replaced) is { } use) throw new ApiException(409, "volume-is-lun", use);
        VolumeRecord renamed = AdminRoutes.Must(await SnapshotRoutes.PatientlyAsync(
            () => daemon.Directory.RenameAsync(volume.Name, request.NewName ?? "", request.Replace), r => r.Fault, call.Aborted));
        if (replaced is not null && replaced.Id != renamed.Id) Forget(replaced);
        daemon.OnChanged(renamed);
        await AnswerAsync(call, renamed);
    }

    /// <summary>A volume is gone: so are those who read it.</summary>
    private void Forget(VolumeRecord gone)
    {
        HashSet<uint> ids = [gone.Id];
        foreach (Session session in daemon.Sessions.List().Where(s => s.Touches(ids))) session.Cut("the volume was replaced by another one");
        daemon.Meters.Forget(gone.Id);
        daemon.Volumes.Forget(gone.Id);
    }

    private async Task SealAsync(ApiCall call)
    {
        VolumeRecord volume = VolumeOf(call);
        _ = await call.ReadAsync(ApiJson.Default.SealAof);
        VolumeRecord done = AdminRoutes.Must(await daemon.Directory.SealAsync(volume.Name));
        daemon.OnChanged(done);
        await AnswerAsync(call, done);
    }

    private async Task AnswerAsync(ApiCall call, VolumeRecord volume)
    {
        if (!volume.IsAppendOnly) throw NotAof(volume);
        await call.AnswerAsync(Describe(volume, await LookAsync(volume, null, 0)), ApiJson.Default.AofInfo);
    }

    private async Task<AppendInfo> LookAsync(VolumeRecord volume, ulong? beyond, long seconds)
    {
        AppendInfo? info = await AtHomeAsync(
            volume,
            host => beyond is { } length && seconds > 0
                ? host.Appends.WaitForAppendAsync(volume.Id, length, (ulong)seconds * 1_000_000_000)
                : new ValueTask<AppendInfo?>(host.Appends.AppendInfoOf(volume.Id)),
            found => found is null || (seconds > 0 && found.Value.LengthBytes <= beyond));
        return info ?? throw (daemon.Directory.Find(volume.Name)?.Id == volume.Id ? NoDisk() : new ApiException(404, "no-such-volume", "the volume was deleted meanwhile"));
    }

    private static long WaitOf(ApiCall call) => call.QueryNumber("wait") switch
    {
        null => 0,
        >= 0 and <= WaitSecondsMax and var wait => wait,
        _ => throw new ApiException(400, "invalid-query", "wait is 0 to 30 seconds", "wait"),
    };

    private VolumeRecord VolumeOf(ApiCall call)
    {
        VolumeRecord volume = AdminRoutes.VolumeOf(daemon, call);
        return volume.IsAppendOnly ? volume : throw NotAof(volume);
    }

    private StoreHost HostOf(VolumeRecord volume) => daemon.Stores.Find(volume.StoreId) ?? throw NoDisk();

    private static ApiException NoDisk() => new(503, "disk-unavailable", "the volume's disk does not serve; see pfcli list_disk, then repeat");

    private static ApiException NotAof(VolumeRecord volume) =>
        new(409, "not-append-only", $"'{volume.Name}' is an ordinary volume; pfcli aof_list shows the append-only ones");

    private static AofInfo Describe(VolumeRecord volume, AppendInfo info) => new(
        volume.Id, volume.Name, info.LengthBytes, info.SizeBytesMax, info.IsSealed, info.Clients, volume.Revision, volume.CreatedAt, volume.Description);
}
