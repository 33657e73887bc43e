using BlockServer.Core;

namespace BlockServer.Storage;

// Append-only volumes that go to another store. At the old home appends are held back for a moment; at the new one a copy is made whose
// bytes are written as those of any volume, and which is then told its length and its clients by records that any reader of the log knows.
public sealed partial class Store
{
    /// <inheritdoc/>
    public async ValueTask<IoStatus> HoldAppendsAsync(uint volumeId, ulong nanosMax)
    {
        if (FindAppends(volumeId) is not { } volume) return IoStatus.NotFound;
        AppendState state = volume.Appends!;
        state.IsHeld = true;
        state.Pace?.OnChange();
        if (state.IsPumping)
        {
            LoopEvent<bool> rest = state.Rest = new LoopEvent<bool>();
            LoopTimer timer = _loop.CreateTimer(() => EndRest(state, false));
            timer.Start(nanosMax);
            bool isResting = await rest.WaitAsync();
            timer.Stop();
            if (!isResting) return IoStatus.Conflict;
        }

        // A store that has failed shows all that was complete: so its readers and its clients' repeats hear the same.
        IoStatus status = Refusal is null ? await EnsureDurable(_appliedLsn) : IoStatus.Ok;
        ShowLength(volume, state.LengthBytes);
        return status;
    }

    /// <inheritdoc/>
    public void ReleaseAppends(uint volumeId, bool hasMoved)
    {
        if (!_volumes.TryGetValue(volumeId, out Volume? volume) || volume.Appends is not { } state) return;
        state.IsHeld = false;
        state.HasMoved |= hasMoved;
        if (state.Waiting.Count > 0) StartPump(volume);
        if (hasMoved) WakeAppendWaits(volume);
    }

    /// <inheritdoc/>
    public AppendCopyState? CopyStateOf(uint volumeId)
    {
        if (FindAppends(volumeId)?.Appends is not { } state) return null;
        IEnumerable<AppendClient> clients = state.Pages.OfType<AppendPage>().SelectMany(page => page.Clients).OrderBy(client => client.LastVersion);
        return new AppendCopyState(state.LengthBytes, [.. clients.Select(StateOf)]);
    }

    /// <inheritdoc/>
    public IBlockDevice? OpenCopy(uint volumeId) => FindCopy(volumeId) is { } copy ? new VolumeDevice(this, copy, _pool, isCopy: true) : null;

    /// <inheritdoc/>
    public async ValueTask<IoStatus> SetCopyAsync(uint volumeId, AppendCopyState state)
    {
        if (Refusal is { } refusal) return refusal;
        _active++;
        RangeLock held = await _locks.TakeAsync(volumeId, StructureLock, 0, 1);
        IoStatus status = FindCopy(volumeId) is { } copy ? await SetCopyAsync(copy, state) : IoStatus.NotFound;
        _locks.Give(held);
        _active--;
        return status;
    }

    private async ValueTask<IoStatus> SetCopyAsync(Volume copy, AppendCopyState wanted)
    {
        AppendState state = copy.Appends!;
        if (wanted.LengthBytes > copy.Head.SizeBytes) return IoStatus.OutOfRange;
        await WaitForRing();
        if (Refusal is { } refusal) return refusal;
        bool shrinks = wanted.LengthBytes < state.LengthBytes;
        IoStatus status = await SayLength(copy, wanted.LengthBytes).Begin();
        if (status == IoStatus.Ok && shrinks) status = await DropBeyondAsync(copy);
        for (int i = 0; i < wanted.Clients.Count && status == IoStatus.Ok; i++) status = await AddClientAsync(copy, wanted.Clients[i]);
        return status;
    }

    /// <summary>All pages in one log page: the length is one for all of them, and no client is known.</summary>
    private Pending SayLength(Volume copy, ulong lengthBytes)
    {
        AppendState state = copy.Appends!;
        Reserve(state.Pages.Count(page => page is not null) * RedoRecord.BeginAppendsLength);
        Pending? last = null;
        for (uint index = 0; index < AppendPage.PagesMax; index++)
        {
            if (state.Pages[index] is null) continue;
            if (last is not null) last.IsContinued = true;
            last = AppendPageRecord(copy, index, lengthBytes);
            last.IsReset = true;
        }

        return last!;
    }

    /// <summary>One chain of appends that bring no data: they lie in what the copy holds already.</summary>
    private async ValueTask<IoStatus> AddClientAsync(Volume copy, AppendClientState client)
    {
        await WaitForRing();
        if (Refusal is { } refusal) return refusal;
        AppendState state = copy.Appends!;
        if (client.Id == Guid.Empty || client.Appends.Count is 0 or > AppendClient.MemoriesMax) return IoStatus.Invalid;
        if (!state.TryPlace(client.Id, out AppendPlace place))
        {
            var known = new AppendClient(client.Id);
            if (state.Admit(known, mayForget: false) is not { } free)
            {
                TryBeginPage(copy, slotsKept: 0);
                // One that was forgotten here could land something twice.
                if (state.Admit(known, mayForget: false) is not { } late) return IoStatus.NoSpace;
                free = late;
            }

            place = free;
        }

        // What gives way to the others leaves its number behind: so the floor is the same.
        if (client.Floor > 0) Add(new AppendedAt(client.Floor, 0, 1));
        foreach (AppendedAt append in client.Appends) Add(append);
        copy.InFlight++;
        IoStatus status = await StartChain();
        EndFlight(copy);
        return status;

        void Add(AppendedAt append)
        {
            Pending record = NewPending(RedoKind.Append, copy, state.Slots[place.Page]);
            record.Extent = place.Page;
            record.Entry = new AppendEntry(place.Place, client.Id, append.Sequence, append.OffsetBytes, append.LengthBytes, 0);
            _chain[_chainCount++] = record;
        }
    }

    private Volume? FindCopy(uint volumeId) => FindAppends(volumeId) is { Head.Epoch: 0 } copy ? copy : null;

    private static void EndRest(AppendState state, bool isResting)
    {
        if (state.Rest is not { } rest) return;
        state.Rest = null;
        rest.Set(isResting);
    }

    private static AppendClientState StateOf(AppendClient client) => new(
        client.Id, client.Floor, [.. client.Memories.ToArray().Where(m => m.Sequence != 0).Select(m => new AppendedAt(m.Sequence, m.OffsetBytes, m.LengthBytes))]);
}
