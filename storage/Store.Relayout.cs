using System.Buffers.Binary;
using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Storage;

// Relayout: which extents are laid out anew, and when (docs/decisions/0006). Small writes leave an extent in pieces; a cut is
// a place between two neighbours of it that both hold data and do not lie together on the store. Every change counts the
// cuts around it, so nobody looks for scattered extents: they are members of a set, by their slots. A timer runs only
// while the set has one that can be done.
public sealed partial class Store
{
    // Scattered extents that are looked at in one turn of the loop.
    private const int RelayoutLooks = 512;

    // Blocks of one read that make it worth a hint.
    private const int HintBlocks = 16;
    private const int HintsKept = 64;

    // Longest rest while clients are at work; shortest when there is nothing to do yet.
    private const ulong RelayoutRestMax = 1_000_000_000, RelayoutRestMin = 100_000;
    private readonly BitTree _scattered;
    private readonly LoopTimer _relayTimer;
    private readonly Action _finishRelayout;
    private readonly uint[] _relayHints = new uint[HintsKept]; // slot + 1, 0: none; a ring
    private ValueTaskAwaiter<RelayoutStep> _relayAwaiter;
    private uint _scatteredCount;
    private uint _relayAt; // the slot that is looked at next
    private uint _relayLooked; // scattered extents looked at since one was done
    private uint _relayHint;
    private long _relayCredit; // blocks that may be written anew
    private ulong _relayMark; // what is below will be cold
    private ulong _relayMarkedAt;
    private ulong _relayCold; // a page that was changed last at or below this LSN is cold
    private ulong _relayRest;
    private ulong _requests; // of clients
    private ulong _requestsSeen;
    private ulong _relayBegan;
    private ulong _blocksRelaid;
    private ulong _relayoutsLost;
    private ulong _relayoutsSkipped;
    private bool _isRelaying;

    /// <summary>What one step came to.</summary>
    private enum RelayoutStep
    {
        /// <summary>An extent was done, lost to a client, or left alone: on to the next one.</summary>
        Next,

        /// <summary>Clients are at work.</summary>
        Rest,

        /// <summary>All that is scattered was changed lately, or room waits for a read to end: later.</summary>
        AllHot,

        /// <summary>No room, or clients have written too little yet: until something changes there is nothing to do.</summary>
        Parked,
    }

    private bool MayRelay =>
        _options.RelayoutBytesPerSecond != 0 && State == StoreState.Online && !_isClosing && !_isRecovering;

    /// <summary>Whether entry <paramref name="index"/> does not lie behind the one before it though both hold data.</summary>
    private static bool IsCut(ReadOnlySpan<byte> entries, int index)
    {
        if (index is 0 or Units.BlocksPerExtent) return false;
        uint left = BlockAt(entries, index - 1), right = BlockAt(entries, index);
        return left is not (0 or MetadataPage.UnknownBlock) && right is not (0 or MetadataPage.UnknownBlock) && right != left + 1;
    }

    private static uint BlockAt(ReadOnlySpan<byte> entries, int index) =>
        BinaryPrimitives.ReadUInt32LittleEndian(entries[(index * MetadataPage.EntryBytes)..]);

    /// <summary>Cuts inside of a run of entries and at both its ends.</summary>
    private static int CutsAround(ReadOnlySpan<byte> entries, BlockRun run)
    {
        int cuts = 0;
        for (int i = run.First; i <= run.First + run.Count; i++)
        {
            if (IsCut(entries, i)) cuts++;
        }

        return cuts;
    }

    /// <summary>Cuts at both ends of a run that lies together.</summary>
    private static int CutsAtEnds(ReadOnlySpan<byte> entries, BlockRun run) =>
        (IsCut(entries, run.First) ? 1 : 0) + (IsCut(entries, run.First + run.Count) ? 1 : 0);

    private static int CutsIn(ReadOnlySpan<byte> entries) => CutsAround(entries, new BlockRun(0, Units.BlocksPerExtent, 0));

    /// <summary>Takes over how many cuts an extent has now.</summary>
    private void NoteCuts(uint number, int cuts)
    {
        ref Slot slot = ref _slots[number];
        slot.Cuts = (byte)cuts;
        bool isScattered = cuts >= _options.RelayoutCutsMin && cuts * _options.RelayoutBlocksPerCut >= slot.Mapped;
        if (isScattered != slot.IsScattered) SetScattered(number, isScattered);
    }

    private void SetScattered(uint number, bool isScattered)
    {
        _slots[number].IsScattered = isScattered;
        if (isScattered) _scattered.Set((int)number);
        else _scattered.Clear((int)number);
        _scatteredCount += isScattered ? 1u : uint.MaxValue;
    }

    /// <summary>A client's change was applied: what it wrote may be written once more, and what was parked may go on.</summary>
    private void NoteClientBlocks(int blocks)
    {
        _relayCredit += blocks;
        if (_scatteredCount > 0) WakeRelayout();
    }

    /// <summary>A large read met a scattered extent: it is to be done before others.</summary>
    private void HintRelayout(uint slot, int count)
    {
        if (count < HintBlocks || !_slots[slot].IsScattered || _relayHints[_relayHint] == slot + 1) return;
        _relayHint = (_relayHint + 1) % HintsKept;
        _relayHints[_relayHint] = slot + 1;
    }

    private void WakeRelayout()
    {
        if (_scatteredCount == 0 || _isRelaying || !MayRelay || _relayTimer.IsArmed) return;
        MarkRelayout();
        _relayTimer.Start(Math.Max(1, _options.RelayoutColdNanos));
    }

    /// <summary>LSNs tell the age of a page without a time in it: what was the log's end a while ago parts old from new.</summary>
    private void MarkRelayout()
    {
        _relayMark = _appliedLsn;
        _relayMarkedAt = _loop.NowNanos;
    }

    private void StartRelayout()
    {
        if (_isRelaying || _scatteredCount == 0 || !MayRelay) return;
        _isRelaying = true;
        _background++;
        _relayBegan = _loop.NowNanos;
#pragma warning disable CA2012 // Awaited exactly once, in FinishRelayout.
        _relayAwaiter = RelayoutAsync().GetAwaiter();
#pragma warning restore CA2012
        if (_relayAwaiter.IsCompleted) FinishRelayout();
        else _relayAwaiter.UnsafeOnCompleted(_finishRelayout);
    }

    private void FinishRelayout()
    {
        RelayoutStep step = _relayAwaiter.GetResult();
        _isRelaying = false;
        _background--;
        if (_scatteredCount == 0 || !MayRelay || step == RelayoutStep.Parked) return;
        ulong now = _loop.NowNanos, passed = now - _relayBegan;
        ulong due = step switch
        {
            RelayoutStep.AllHot => Math.Max(RelayoutRestMin, _relayMarkedAt + _options.RelayoutColdNanos - now),
            RelayoutStep.Rest => _relayRest,
            _ => Math.Max(_relayRest, RelayoutPace > passed ? RelayoutPace - passed : 1),
        };
        _relayTimer.Start(due);
    }

    /// <summary>Time that one extent takes at the rate that is allowed.</summary>
    private ulong RelayoutPace => (ulong)(Units.ExtentBytes * 1e9 / _options.RelayoutBytesPerSecond);

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<RelayoutStep> RelayoutAsync()
    {
        if (_loop.NowNanos - _relayMarkedAt >= _options.RelayoutColdNanos)
        {
            _relayCold = _relayMark;
            MarkRelayout();
        }

        if (MustRest()) return RelayoutStep.Rest;
        RelayoutStep step = Choose(out uint slot);
        return step == RelayoutStep.Next && slot != uint.MaxValue ? await RelayAsync(slot) : step;
    }

    /// <summary>Clients asked for something since the last look: then the rests between two extents grow, from the pace to a
    /// second, which still is progress. The log near its end counts as work too.</summary>
    private bool MustRest()
    {
        bool isBusy = _requests != _requestsSeen || RingOccupancy > 0.6 || _frameWaiters.Count > 0;
        _requestsSeen = _requests;
        if (!isBusy)
        {
            _relayRest = 0;
            return false;
        }

        if (_relayRest >= RelayoutRestMax) return false;
        _relayRest = Math.Min(RelayoutRestMax, Math.Max(2 * _relayRest, RelayoutPace));
        return true;
    }

    /// <summary>The next extent that is scattered and cold: one that was read in order first, else in the order of slots.
    /// <paramref name="slot"/> is uint.MaxValue when there are more to look at.</summary>
    private RelayoutStep Choose(out uint slot)
    {
        for (int i = 0; i < HintsKept; i++)
        {
            ref uint hint = ref _relayHints[_relayHint];
            slot = hint - 1;
            hint = 0;
            _relayHint = (_relayHint + HintsKept - 1) % HintsKept;
            if (slot < _slots.Next && IsRelayable(slot)) return RelayoutStep.Next;
        }

        slot = uint.MaxValue;
        for (int i = 0; i < RelayoutLooks; i++)
        {
            if (_relayLooked++ >= _scatteredCount)
            {
                _relayLooked = 0;
                return RelayoutStep.AllHot;
            }

            int found = _scattered.FindFrom((int)_relayAt);
            if (found < 0) found = _scattered.FindFrom(0);
            _relayAt = (uint)found + 1;
            if (!IsRelayable((uint)found)) continue;
            slot = (uint)found;
            _relayLooked = 0;
            break;
        }

        return RelayoutStep.Next;
    }

    private bool IsRelayable(uint number)
    {
        Slot slot = _slots[number];
        return slot.IsScattered && slot.Kind == MetadataKind.Extent && slot.PageLsn <= _relayCold
            && _volumes.TryGetValue(slot.VolumeId, out Volume? volume) && !volume.IsDeleting;
    }
}
