using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Storage;

// Append-only volumes (engine B1.10): appends, their length, and who waits for it. What a batch does is in
// Store.AppendBatch.cs.
public sealed partial class Store
{
    // Appends of one batch: each takes a record in the one log page that the batch has.
    private const int AppendsAtOnce = 48;

    // Those who wait for one volume to grow; more are answered at once and ask again.
    private const int AppendWaitsMax = 1024;

    private readonly Stack<AppendRequest> _appendPool = new();

    /// <inheritdoc/>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    public async ValueTask<AppendResult> AppendAsync(uint volumeId, AppendKey key, ReadOnlyMemory<byte> bytes, Guid order = default)
    {
        if (_volumes.TryGetValue(volumeId, out Volume? gone) && gone.Appends?.HasMoved == true) return new AppendResult(AppendOutcome.Moved);
        if (Refusal is not null) return new AppendResult(AppendOutcome.Unavailable);
        bool isKey = key.Client == Guid.Empty ? key.Sequence == 0 : key.Sequence > 0;
        if (bytes.Length is 0 or > Units.RequestBytesMax || !isKey) return new AppendResult(AppendOutcome.Invalid);
        if (FindAppends(volumeId) is not { } volume) return new AppendResult(AppendOutcome.NotFound);
        AppendState state = volume.Appends!;
        AppendRequest request = _appendPool.TryPop(out AppendRequest? spare) ? spare : new AppendRequest(_appendPool);
        request.Key = key;
        request.Order = key.Client == Guid.Empty ? order : key.Client;
        request.Bytes = bytes;
        state.Waiting.Enqueue(request);
        state.WaitingBytes += bytes.Length;
        state.Asked++;
        _active++;
        StartPump(volume);
        AppendAnswer answer = await request.Begin();
        uint resets = state.Resets;
        AppendOutcome outcome = answer.Outcome;
        // One flush for all who wait: that is the group commit.
        if (outcome == AppendOutcome.Done && !Breaks(BrokenRules.AnswerAppendEarly) && await EnsureDurable(answer.Lsn) != IoStatus.Ok)
            outcome = AppendOutcome.Unavailable;
        // After a rollback what was appended in front of it is not there any more.
        if (outcome == AppendOutcome.Done && state.Resets == resets) ShowLength(volume, answer.OffsetBytes + (ulong)bytes.Length);
        _active--;
        return outcome == AppendOutcome.Done ? new AppendResult(outcome, answer.OffsetBytes, answer.IsRepeat) : new AppendResult(outcome);
    }

    /// <inheritdoc/>
    public AppendInfo? AppendInfoOf(uint volumeId) => FindAppends(volumeId) is { } volume
        ? new AppendInfo(volume.Appends!.DurableBytes, volume.Head.SizeBytes, volume.Head.IsSealed, volume.Appends.ClientCount)
        : null;

    /// <inheritdoc/>
    public async ValueTask<AppendInfo?> WaitForAppendAsync(uint volumeId, ulong lengthBytes, ulong nanosMax)
    {
        if (FindAppends(volumeId) is not { } volume) return null;
        AppendState state = volume.Appends!;
        if (state.DurableBytes <= lengthBytes && !volume.Head.IsSealed && !state.HasMoved && Refusal is null && nanosMax > 0 && state.Waits.Count < AppendWaitsMax)
        {
            var wait = new AppendWait(lengthBytes);
            LoopTimer timer = _loop.CreateTimer(wait.End);
            timer.Start(nanosMax);
            state.Waits.Add(wait);
            await wait.WaitAsync();
            timer.Stop();
            state.Waits.Remove(wait);
        }

        return AppendInfoOf(volumeId);
    }

    private Volume? FindAppends(uint volumeId) =>
        _volumes.TryGetValue(volumeId, out Volume? volume) && !volume.IsDeleting && volume.Appends is not null ? volume : null;

    /// <summary>Where the volume ends: its size, or what a device shows of its length.</summary>
    private static ulong EndOf(Volume volume) => volume.Appends is { } appends ? AppendState.Shown(appends.LengthBytes) : volume.Head.SizeBytes;

    /// <summary>The length is durable: readers may see it.</summary>
    private void ShowLength(Volume volume, ulong lengthBytes)
    {
        AppendState state = volume.Appends!;
        if (lengthBytes <= state.DurableBytes) return;
        state.DurableBytes = lengthBytes;
        if (state.Waits.Count > 0) WakeAppendWaits(volume);
    }

    /// <summary>In turns of their own: who wakes up may do anything.</summary>
    private void WakeAppendWaits(Volume volume)
    {
        if (volume.Appends is not { Waits.Count: > 0 } state) return;
        bool isOver = Refusal is not null || volume.IsDeleting || volume.Head.IsSealed || volume.Appends.HasMoved;
        foreach (AppendWait wait in state.Waits)
        {
            if (isOver || state.DurableBytes > wait.LengthBytes) _loop.Post(wait.End);
        }
    }

    /// <summary>Why an append-only volume cannot get this head, or null.</summary>
    private static IoStatus? AppendHeadFault(Volume volume, VolumeHead head)
    {
        if (head.IsAppendOnly != volume.Head.IsAppendOnly || (head.IsSealed && !head.IsAppendOnly)) return IoStatus.Invalid;
        if (volume.Appends is not { } state) return null;
        if (volume.Head.IsSealed && !head.IsSealed) return IoStatus.ReadOnly;
        return head.SizeBytes < state.LengthBytes + state.BatchBytes ? IoStatus.OutOfRange : null;
    }

    /// <summary>The change of a head is over, well or not.</summary>
    private void EndHeadChange(Volume volume)
    {
        if (volume.Appends is not { } state) return;
        state.IsSealing = volume.Head.IsSealed;
        if (volume.Head.IsSealed) WakeAppendWaits(volume);
    }

    /// <summary>The first head of a volume; of an append-only one with its first page, in one log page.</summary>
    private async ValueTask<IoStatus> WriteFirstHeadAsync(Volume volume, ulong lengthBytes)
    {
        if (volume.Appends is not { } state) return await WriteHeadAsync(volume, volume.Head);
        Check.That(_slots.TryTake(MetadataKind.Appends, volume.Head.Id, 0, out uint slot));
        state.SetPage(0, slot, new AppendPage());
        await WaitForRing();
        if (State != StoreState.Online) return IoStatus.Unavailable;
        VolumeHeadLayout head = LayoutOf(volume);
        Reserve(RedoRecord.VolumeLength(head) + RedoRecord.BeginAppendsLength);
        Pending record = NewPending(RedoKind.Volume, volume, volume.Slot);
        record.Head = head;
        record.IsContinued = true; // in RAM only: a log page is replayed as a whole, and these two need no data
        RedoRecordWriter.Volume(Append(record, RedoRecord.VolumeLength(head)), volume.Slot, head);
        Pending page = AppendPageRecord(volume, 0, lengthBytes);
        page.IsReset = true;
        IoStatus status = await page.Begin();
        return status == IoStatus.Ok ? await EnsureDurable(_appliedLsn) : status;
    }

    private Pending AppendPageRecord(Volume volume, uint index, ulong lengthBytes)
    {
        uint slot = volume.Appends!.Slots[index];
        Pending record = NewPending(RedoKind.BeginAppends, volume, slot);
        record.Extent = index;
        record.Entry = new AppendEntry(AppendPage.NoPlace, default, 0, lengthBytes, 0, 0);
        RedoRecordWriter.BeginAppends(Append(record, RedoRecord.BeginAppendsLength), slot, volume.Head.Id, index, lengthBytes);
        return record;
    }

    /// <summary>Behind the records of a rollback, in the same log page: the length is the snapshot's, and no client is known,
    /// for what is remembered of them was undone.</summary>
    private Pending ResetAppends(Volume volume, Layer target, Pending last)
    {
        if (volume.Appends is not { } state) return last;
        for (uint index = 0; index < AppendPage.PagesMax; index++)
        {
            if (state.Pages[index] is null) continue;
            last.IsContinued = true;
            last = AppendPageRecord(volume, index, target.Head.LengthBytes);
            last.IsReset = true;
        }

        return last;
    }

    private void ApplyBeginAppends(Pending record)
    {
        AppendState state = record.Volume!.Appends!;
        if (record.IsReset) state.Reset(record.Entry.OffsetBytes);
        else state.Pages[record.Extent]!.LengthBytes = record.Entry.OffsetBytes;
        Touch(record.Slot, record.Lsn);
    }

    private void ApplyAppend(Pending record)
    {
        AppendState state = record.Volume!.Appends!;
        state.Pages[record.Extent]!.Take(record.Entry);
        state.LengthBytes = Math.Max(state.LengthBytes, record.Entry.EndBytes);
        ref Slot slot = ref _slots[record.Slot];
        slot.MaxVersion = Math.Max(slot.MaxVersion, record.Version);
        Touch(record.Slot, record.Lsn);
    }

    /// <summary>Of a deleted volume: the pages go in front of the head.</summary>
    private async ValueTask<IoStatus> DropAppendsAsync(Volume volume)
    {
        IoStatus status = IoStatus.Ok;
        for (uint index = 0; index < AppendPage.PagesMax && status == IoStatus.Ok; index++)
        {
            if (volume.Appends?.Pages[index] is null) continue;
            await WaitForRing();
            status = State == StoreState.Online ? await DropSlotAsync(volume, volume.Appends.Slots[index], index) : IoStatus.Unavailable;
        }

        return status;
    }
}
