using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Storage;

// Appends are written in batches, one at a time for a volume, so that they lie in the log in the order of their offsets. A
// batch is one chain: its data, then one record for each append, which says the new length. So length and data change as
// one, and a crash leaves all of a batch or nothing of it. The answers wait for a flush, which batches of all volumes share; a
// large next batch begins when this one is complete in the log, a small one gathers until the flush is done (AppendPace).
//
// An append of more than a chain holds is written in pieces behind the length, where nobody sees them; when they are durable
// its last piece goes into a chain with the record that says the length.
public sealed partial class Store
{
    // Pieces of one large append that are under way at a time.
    private const int AppendPiecesAtOnce = 8;

    /// <summary>At the end of the turn: what came in it goes together.</summary>
    private void StartPump(Volume volume)
    {
        if (volume.Appends!.Pump is null) MakePump(volume, volume.Appends);
        _loop.CallAtTurnEnd(volume.Appends.Pump!);
    }

    // Apart: what its lambdas hold is allocated wherever they stand.
    private void MakePump(Volume volume, AppendState state)
    {
        state.Pace = new AppendPace(_loop, state, _options.AppendOverlapBytes);
        state.Pump = new TurnEndHook(() => RunPump(volume));
        state.OnPumped = () => EndPump(state);
    }

    private void RunPump(Volume volume)
    {
        AppendState state = volume.Appends!;
        if (state.IsPumping)
        {
            state.Pace!.OnChange();
            return;
        }

        if (state.IsHeld) return;
        state.IsPumping = true;
#pragma warning disable CA2012 // The awaiter is kept and asked once, in EndPump.
        state.Pumped = PumpAsync(volume).GetAwaiter();
#pragma warning restore CA2012
        if (state.Pumped.IsCompleted) EndPump(state);
        else state.Pumped.UnsafeOnCompleted(state.OnPumped!);
    }

    /// <summary>Nobody else awaits it, so a broken promise in it stops the store.</summary>
    private void EndPump(AppendState state)
    {
        try
        {
            state.Pumped.GetResult();
        }
        catch (Exception broken) when (broken is not OutOfMemoryException)
        {
            Fail("appending: " + broken);
        }
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<IoStatus> PumpAsync(Volume volume)
    {
        AppendState state = volume.Appends!;
        while (state.Waiting.Count > 0 && !state.IsHeld)
        {
            await state.Pace!.WaitAsync(AppendsAtOnce);
            if (state.IsHeld) break;
            int bytes = Gather(volume);
            if (state.Batch.Count == 0) continue;
            state.BatchBytes = (ulong)bytes;
            ulong start = state.LengthBytes;
            IoStatus status = bytes > AtomicBytes
                ? await WriteLargeAsync(volume, start, state.Batch[0].Bytes)
                : await WriteBatchAsync(volume, start, start, bytes);
            state.BatchBytes = 0;
            if (status == IoStatus.Conflict) AskAgain(state);
            else AnswerBatch(volume, start, status);
        }

        state.IsPumping = false;
        EndRest(state, true);
        return IoStatus.Ok;
    }

    /// <summary>Moves appends that fit into one chain into the batch, and answers those that need no writing.</summary>
    private int Gather(Volume volume)
    {
        AppendState state = volume.Appends!;
        int bytes = 0;
        while (state.Batch.Count < AppendsAtOnce && state.Waiting.TryPeek(out AppendRequest? next))
        {
            bool isFollower = false;
            if (next.Key.Client != Guid.Empty)
            {
                AppendRequest? before = LastOf(state.Batch, next.Key.Client);
                // What this one means depends on what becomes of that one.
                if (before is not null && before.Key.Sequence >= next.Key.Sequence) break;
                isFollower = before is not null;
            }

            if (Refused(volume, next, (ulong)bytes, isFollower) is { } answer)
            {
                AppendRequest request = TakeWaiting(state);
                if (answer.Outcome == AppendOutcome.Done) request.Complete(answer);
                else Refuse(state, [request], answer.Outcome);
                continue;
            }

            if (state.Batch.Count > 0 && !FitsChain(state, bytes + next.Bytes.Length)) break;
            state.Batch.Add(TakeWaiting(state));
            bytes += next.Bytes.Length;
            if (bytes > AtomicBytes) break;
        }

        return bytes;
    }

    private static AppendRequest? LastOf(List<AppendRequest> batch, Guid client)
    {
        for (int i = batch.Count - 1; i >= 0; i--)
        {
            if (batch[i].Key.Client == client) return batch[i];
        }

        return null;
    }

    private static AppendRequest TakeWaiting(AppendState state)
    {
        AppendRequest request = state.Waiting.Dequeue();
        state.WaitingBytes -= request.Bytes.Length;
        return request;
    }

    /// <summary>One more append fits into the log page, however scattered its blocks will be.</summary>
    private static bool FitsChain(AppendState state, int bytes)
    {
        if (bytes > AtomicBytes) return false;
        int blocks = BlocksOf(state.LengthBytes, bytes);
        int records = 2 * RedoRecord.RunsOffset + RedoRecord.WriteLength(blocks, blocks) + (state.Batch.Count + 1) * RedoRecord.AppendLength;
        return records <= Units.BlockBytes - RedoPageHeader.Size;
    }

    /// <summary>The answer to an append that is not written, or null.</summary>
    private AppendAnswer? Refused(Volume volume, AppendRequest request, ulong inFront, bool isFollower)
    {
        AppendState state = volume.Appends!;
        if (state.HasMoved) return new AppendAnswer(AppendOutcome.Moved, 0, false, 0);
        if (State != StoreState.Online) return new AppendAnswer(AppendOutcome.Unavailable, 0, false, 0);
        if (volume.IsDeleting) return new AppendAnswer(AppendOutcome.NotFound, 0, false, 0);
        AppendClient? client = request.Key.Client == Guid.Empty || Breaks(BrokenRules.ForgetAppends) ? null : state.Find(request.Key.Client);
        if (client is not null && client.TryFind(request.Key.Sequence, out AppendMemory landed))
        {
            return landed.LengthBytes == request.Bytes.Length
                ? new AppendAnswer(AppendOutcome.Done, landed.OffsetBytes, true, _appliedLsn)
                : new AppendAnswer(AppendOutcome.Differs, 0, false, 0);
        }

        AppendOutcome? outcome = client?.IsTooOld(request.Key.Sequence) == true ? AppendOutcome.StaleSequence
            : client is null && !isFollower && request.Key.Sequence > 1 && !Breaks(BrokenRules.ForgetAppends) ? AppendOutcome.UnknownClient
            : state.IsSealing || volume.Head.IsSealed ? AppendOutcome.Sealed
            : state.LengthBytes + inFront + (ulong)request.Bytes.Length > volume.Head.SizeBytes ? AppendOutcome.Full
            : null;
        return outcome is { } known ? new AppendAnswer(known, 0, false, 0) : null;
    }

    /// <summary>Answers what is refused, and with it what waits behind in the same order: would one of those land, there would be a hole
    /// in what its client asked for, and nobody would tell him in time. What has landed already keeps its own answer.</summary>
    private void Refuse(AppendState state, List<AppendRequest> refused, AppendOutcome outcome)
    {
        int reasons = refused.Count;
        ulong asked = state.Asked;
        for (int i = 0; i < refused.Count; i++)
        {
            AppendRequest request = refused[i];
            // Just before its answer: whoever was answered in front of it may have asked for one more behind it.
            if (request.Order != Guid.Empty && (i < reasons || state.Asked != asked) && !Breaks(BrokenRules.AppendPastRefusal))
                TakeFollowers(state, request, refused);
            request.Complete(new AppendAnswer(outcome, 0, false, 0));
        }
    }

    /// <summary>Moves what waits behind a refused one from the queue to their list.</summary>
    private static void TakeFollowers(AppendState state, AppendRequest request, List<AppendRequest> refused)
    {
        for (int left = state.Waiting.Count; left > 0; left--)
        {
            AppendRequest next = TakeWaiting(state);
            if (next.Follows(request) && state.Find(next.Key.Client)?.TryFind(next.Key.Sequence, out _) != true)
            {
                refused.Add(next);
                continue;
            }

            state.Waiting.Enqueue(next);
            state.WaitingBytes += next.Bytes.Length;
        }
    }

    /// <summary>The volume went back to a snapshot meanwhile: everything is looked at anew, in the same order.</summary>
    private static void AskAgain(AppendState state)
    {
        state.Waiting = new Queue<AppendRequest>(state.Batch.Concat(state.Waiting));
        foreach (AppendRequest request in state.Batch) state.WaitingBytes += request.Bytes.Length;
        state.Batch.Clear();
    }

    private void AnswerBatch(Volume volume, ulong start, IoStatus status)
    {
        AppendOutcome outcome = status switch
        {
            IoStatus.Ok => AppendOutcome.Done,
            IoStatus.ReadOnly => AppendOutcome.Sealed,
            IoStatus.NoSpace => AppendOutcome.NoSpace,
            IoStatus.Corrupt or IoStatus.IoError => AppendOutcome.Damaged,
            _ => volume.IsDeleting ? AppendOutcome.NotFound : AppendOutcome.Unavailable,
        };
        ulong lsn = _appliedLsn;
        // Who is answered may append again: that goes to the queue, the pump is still running.
        List<AppendRequest> batch = volume.Appends!.Batch;
        int appends = batch.Count;
        if (outcome != AppendOutcome.Done)
        {
            Refuse(volume.Appends, batch, outcome);
            batch.Clear();
            return;
        }

        for (int i = 0; i < batch.Count; i++)
        {
            AppendRequest request = batch[i];
            ulong offset = start;
            start += (ulong)request.Bytes.Length;
            request.Complete(new AppendAnswer(AppendOutcome.Done, offset, false, lsn));
        }

        batch.Clear();
#pragma warning disable CA2012 // The pace keeps its awaiter and asks it once.
        volume.Appends.Pace!.OnWritten(appends, EnsureDurable(lsn));
#pragma warning restore CA2012
    }

    /// <summary>Writes <paramref name="length"/> bytes at <paramref name="at"/> and the records of the batch, which begins at
    /// <paramref name="start"/>, as one chain. Errors: Conflict (the length is another one meanwhile), ReadOnly (sealed).</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<IoStatus> WriteBatchAsync(Volume volume, ulong start, ulong at, int length)
    {
        AppendState state = volume.Appends!;
        int count = BlocksOf(at, length), edge = (int)(at % Units.BlockBytes);
        ulong first = at >> Units.BlockShift, end = at + (ulong)length;
        int low = LowBlocks(first, count);
        uint resets = state.Resets;
        RangeLock held = await TakeLowAsync(volume, first, low);
        RangeLock? heldHigh = low < count ? await TakeLowAsync(volume, first + (ulong)low, count - low) : null;
        // Whole blocks of one append go to the disk as they came: they are lent until the answer.
        ReadOnlyMemory<byte> whole = edge == 0 && length % Units.BlockBytes == 0 && state.Batch.Count == 1 ? state.Batch[0].Bytes[^length..] : default;
        IoBuffer? buffer = whole.IsEmpty ? await _pool.RentAsync(count * Units.BlockBytes) : null;
        if (buffer is not null) whole = buffer.Slice(0, count * Units.BlockBytes);
        IoStatus status = edge == 0 || state.TailOf == at ? IoStatus.Ok : await ReadBlockAsync(volume, first, state.Tail);
        if (status == IoStatus.Ok) status = await MakeRoomAsync(volume, first, count, count, begins: true);
        if (status == IoStatus.Ok) status = Reach(volume, at, length, isBounded: false);
        // From here to the end of the chain nothing is awaited.
        // It may have gone back to another end, or to another content of the same length.
        if (status == IoStatus.Ok && (state.LengthBytes != start || state.Resets != resets)) status = IoStatus.Conflict;
        if (status == IoStatus.Ok && state.IsSealing) status = IoStatus.ReadOnly;
        if (status == IoStatus.Ok && IsDoubtfulPart(volume, first, count)) status = IoStatus.Corrupt;
        if (status == IoStatus.Ok && !HasSlots(volume, first, count, begins: true)) status = IoStatus.NoSpace;
        if (status == IoStatus.Ok)
        {
            if (buffer is not null) Fill(state, buffer.Slice(0, whole.Length).Span, edge, at - start, length);
            if (Breaks(BrokenRules.LengthBeforeData)) await SayLengthFirst(volume, start);
            Span<AppendPlace?> places = stackalloc AppendPlace?[state.Batch.Count];
            PlaceClients(volume, first, count, places);
            ChainWrite(volume, first, whole[..(low << Units.BlockShift)]);
            if (low < count) ChainWrite(volume, first + (ulong)low, whole[(low << Units.BlockShift)..]);
            if (!Breaks(BrokenRules.LengthBeforeData)) ChainAppends(volume, start, places);
            volume.InFlight++;
            status = await StartChain();
            EndFlight(volume);
        }

        if (status == IoStatus.Ok && end % Units.BlockBytes != 0)
        {
            whole.Span[^Units.BlockBytes..].CopyTo(state.Tail);
            state.TailOf = end;
        }

        buffer?.Return();
        if (heldHigh is not null) _locks.Give(heldHigh);
        _locks.Give(held);
        return status;
    }

    /// <summary>Copies what the last block holds and what the appends bring, from <paramref name="skip"/> bytes behind their begin on.</summary>
    private static void Fill(AppendState state, Span<byte> blocks, int edge, ulong skip, int length)
    {
        state.Tail.AsSpan(0, edge).CopyTo(blocks);
        blocks[(edge + length)..].Clear();
        Span<byte> target = blocks[edge..];
        int done = 0;
        foreach (AppendRequest request in state.Batch)
        {
            ReadOnlySpan<byte> bytes = request.Bytes.Span[(int)skip..];
            skip = 0;
            bytes.CopyTo(target[done..]);
            done += bytes.Length;
        }

        Check.That(done == length);
    }

    /// <summary>Finds or makes a place for each client of the batch. A new page begins in the log in front of the chain; when
    /// there is no slot for one, the client that appended longest ago is forgotten.</summary>
    private void PlaceClients(Volume volume, ulong first, int count, Span<AppendPlace?> places)
    {
        AppendState state = volume.Appends!;
        for (int i = 0; i < places.Length; i++)
        {
            places[i] = null;
            Guid id = state.Batch[i].Key.Client;
            if (id == Guid.Empty) continue;
            if (!state.TryPlace(id, out AppendPlace place))
            {
                var client = new AppendClient(id);
                if (state.Admit(client, mayForget: false) is not { } free)
                {
                    TryBeginPage(volume, (uint)PagesToBegin(volume, ExtentOf(first), ExtentOf(first + (ulong)count - 1), begins: true));
                    free = state.Admit(client, mayForget: true)!.Value;
                }

                place = free;
            }

            // Nobody of the batch is forgotten for another one of it.
            state.Pages[place.Page]![place.Place]!.LastVersion = _nextVersion;
            places[i] = place;
        }
    }

    private void TryBeginPage(Volume volume, uint slotsKept)
    {
        AppendState state = volume.Appends!;
        int index = Array.IndexOf(state.Pages, null);
        if (index < 0 || !HasSlotsForHeads(slotsKept + 1)) return;
        Check.That(_slots.TryTake(MetadataKind.Appends, volume.Head.Id, (uint)index, out uint slot));
        // It says no length: what was appended last may not be durable, and a power cut drop it, while this record stays.
        state.SetPage((uint)index, slot, new AppendPage());
        AppendPageRecord(volume, (uint)index, 0).IsSilent = true;
    }

    private void ChainAppends(Volume volume, ulong start, ReadOnlySpan<AppendPlace?> places)
    {
        AppendState state = volume.Appends!;
        for (int i = 0; i < places.Length; i++)
        {
            AppendRequest request = state.Batch[i];
            uint page = places[i]?.Page ?? FirstPage(state);
            Pending record = NewPending(RedoKind.Append, volume, state.Slots[page]);
            record.Extent = page;
            record.Entry = new AppendEntry(
                places[i]?.Place ?? AppendPage.NoPlace, request.Key.Client, request.Key.Sequence, start, (uint)request.Bytes.Length, 0);
            start += (ulong)request.Bytes.Length;
            _chain[_chainCount++] = record;
        }
    }

    private static uint FirstPage(AppendState state) => (uint)Array.FindIndex(state.Pages, page => page is not null);

    /// <summary>An append of more than a chain holds: pieces behind the length, made durable, then the last one with the
    /// length.</summary>
    private async ValueTask<IoStatus> WriteLargeAsync(Volume volume, ulong start, ReadOnlyMemory<byte> bytes)
    {
        ulong end = start + (ulong)bytes.Length, last = (end - 1) & ~(ulong)(Units.ExtentBytes - 1);
        var under = new Queue<ValueTask<IoStatus>>(AppendPiecesAtOnce);
        // A piece that comes when the volume has gone back would lie in the midst of what it holds now.
        uint resets = volume.Appends!.Resets;
        IoStatus status = IoStatus.Ok;
        for (ulong at = start; at < last && status == IoStatus.Ok;)
        {
            int length = (int)(Units.ExtentBytes - at % Units.ExtentBytes);
            if (under.Count == AppendPiecesAtOnce) status = await under.Dequeue();
#pragma warning disable CA2012 // Several at once; each is awaited exactly once, above or below.
            under.Enqueue(WritePieceAsync(volume, at, bytes.Slice((int)(at - start), length), resets));
#pragma warning restore CA2012
            at += (ulong)length;
        }

        while (under.TryDequeue(out ValueTask<IoStatus> piece))
        {
            IoStatus one = await piece;
            if (status == IoStatus.Ok) status = one;
        }

        // Recovery drops what a power cut took: were the length in front of it, there would be a hole.
        if (status == IoStatus.Ok && !Breaks(BrokenRules.LargeAppendUnflushed)) status = await EnsureDurable(_appliedLsn);
        if (status == IoStatus.Ok && volume.Appends.Resets != resets) status = IoStatus.Conflict;
        if (status == IoStatus.Ok) status = await WriteBatchAsync(volume, start, last, (int)(end - last));
        if (status == IoStatus.Ok || State != StoreState.Online || volume.IsDeleting) return status;
        // What lies behind the length is of no use any more.
        RangeLock held = await _locks.TakeAsync(volume.Head.Id, StructureLock, 0, 1);
        if (!volume.IsDeleting) await DropBeyondAsync(volume);
        _locks.Give(held);
        return status;
    }

    /// <summary>From memory of our own: what the caller lends need not be fit for the disk.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<IoStatus> WritePieceAsync(Volume volume, ulong at, ReadOnlyMemory<byte> bytes, uint resets)
    {
        IoBuffer buffer = await _pool.RentAsync(bytes.Length);
        bytes.CopyTo(buffer.Slice(0, bytes.Length));
        IoStatus status = await WriteAsync(volume, at, buffer.Slice(0, bytes.Length), isBounded: false, resets);
        buffer.Return();
        return status;
    }

    /// <summary>The broken rule: the length is said before the data, by a chain of its own.</summary>
    private ValueTask<IoStatus> SayLengthFirst(Volume volume, ulong start)
    {
        AppendState state = volume.Appends!;
        Span<AppendPlace?> places = stackalloc AppendPlace?[state.Batch.Count];
        PlaceClients(volume, 0, 1, places);
        ChainAppends(volume, start, places);
        return StartChain();
    }
}
