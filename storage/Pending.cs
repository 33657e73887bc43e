using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Storage;

/// <summary>A record in flight: in the log page, waiting for its data and its turn. The records of one request are a chain
/// through <see cref="Next"/>; only its last one is awaited. Lives on one loop.</summary>
internal sealed class Pending(Stack<Pending> home) : LoopOperation<IoStatus>
{
    public readonly BlockRun[] Runs = new BlockRun[Units.BlocksPerExtent];
    public readonly uint[] Crcs = new uint[Units.BlocksPerExtent];
    public RedoKind Kind;
    public uint Slot;
    public uint Extent;
    public bool IsNewPage;
    public bool IsContinued;

    /// <summary>A Write of content that was there already: every block keeps its version.</summary>
    public bool IsRelaid;
    public ReadOnlyMemory<byte> Source;
    public int RunCount;
    public int BlockCount;

    /// <summary>Blocks that a Write adds to what its volume takes; the others replace some.</summary>
    public int Growth;

    /// <summary>Blocks that a Write replaces, and that come back when it is applied.</summary>
    public int Returning;
    public ulong Version;
    public ulong Lsn;

    /// <summary>LSN of the record before it that names its slot; 0 when it says all that the slot holds.</summary>
    public ulong Before;
    public int DataPending;
    public Volume? Volume;
    public VolumeHeadLayout Head;
    public SnapshotLayout Snapshot;

    /// <summary>The layer that a Snapshot is of, or that a Rekey gives the page to.</summary>
    public Layer? Layer;

    /// <summary>Page of the layer above, slot + 1, that what a DropPage shared with it belongs to from then on.</summary>
    public uint Heir;

    /// <summary>What an Append says; its version is set with the record's.</summary>
    public AppendEntry Entry;

    /// <summary>A BeginAppends takes back what the page said: the volume goes back to a snapshot of that length.</summary>
    public bool IsReset;

    /// <summary>Nobody awaits it.</summary>
    public bool IsSilent;
    public LogPage Page = null!;
    public Pending? Next;

    /// <summary>Its data did not reach the medium as the log says: this later record, the first of its chain, says it
    /// again. On the first record of a chain.</summary>
    public Pending? Moved;

    /// <summary>The awaited record that this one says again. On the last record of a chain.</summary>
    public Pending? Origin;

    /// <summary>A write of it failed, block by block too. On the first record of a chain.</summary>
    public bool HasBadBlocks;

    /// <summary>How often its request has moved. On the first record of a chain.</summary>
    public int Moves;

    /// <summary>First record of its chain.</summary>
    public Pending First = null!;

    protected override void OnTaken() => Retire();

    /// <summary>Back to the free list; for a record that nobody awaits.</summary>
    public void Retire()
    {
        Source = default;

        // With a broken rule the data may still be under way: then the object is left to the collector.
        if (DataPending == 0 && Page.IsDone) home.Push(this);
    }
}

/// <summary>Memory for consecutive pages of the log, used from front to back, so that pages of one turn go to the medium by one write. Lives on
/// one loop.</summary>
internal sealed class LogBuffer(IoBuffer buffer)
{
    /// <summary>Pages that it has room for.</summary>
    public const int PagesMax = 16;

    /// <summary>Pages handed out since it was empty.</summary>
    public int Used;

    /// <summary>Pages that are still needed.</summary>
    public int Held;

    /// <summary>The memory of <paramref name="count"/> pages from <paramref name="index"/> on.</summary>
    public Memory<byte> Pages(int index, int count) => buffer.Slice(index * Units.BlockBytes, count * Units.BlockBytes);
}

/// <summary>One page of the log being filled or written. Lives on one loop.</summary>
internal sealed class LogPage
{
    /// <summary>Where it lies.</summary>
    public LogBuffer Buffer = null!;

    /// <summary>Which page of <see cref="Buffer"/> it is.</summary>
    public int Index;

    public ulong Number;
    public int Used;
    public int Count;
    public int Left;
    public bool IsDone;

    /// <summary>The page behind it, when one write takes both.</summary>
    public LogPage? NextInWrite;

    public Span<byte> Bytes => Buffer.Pages(Index, 1).Span;
}

/// <summary>One write of consecutive pages of the log. Lives on one loop.</summary>
internal sealed class LogWrite
{
    private readonly Store _store;
    private readonly Action _finish;
    private ValueTaskAwaiter<IoStatus> _awaiter;

    public LogWrite(Store store)
    {
        _store = store;
        _finish = () => _store.OnLogWritten(this, _awaiter.GetResult());
    }

    /// <summary>The first of its pages.</summary>
    public LogPage? First;

    public void Start(ValueTask<IoStatus> write)
    {
        _awaiter = write.GetAwaiter();
        if (_awaiter.IsCompleted) _finish();
        else _awaiter.UnsafeOnCompleted(_finish);
    }
}

/// <summary>One write of a run of data; retried once, for media that remap. Lives on one loop.</summary>
internal sealed class DataWrite
{
    private readonly Store _store;
    private readonly Action _finish;
    private ValueTaskAwaiter<IoStatus> _awaiter;

    public DataWrite(Store store)
    {
        _store = store;
        _finish = () => _store.OnDataWritten(this, _awaiter.GetResult());
    }

    public Pending Record = null!;
    public ulong Offset;
    public ReadOnlyMemory<byte> Source;
    public bool IsRetry;

    public void Start(ValueTask<IoStatus> write)
    {
        _awaiter = write.GetAwaiter();
        if (_awaiter.IsCompleted) _finish();
        else _awaiter.UnsafeOnCompleted(_finish);
    }
}

/// <summary>Somebody who waits until the log is durable up to an LSN, or for room in the ring or on the store.</summary>
internal sealed class FlushWait(Stack<FlushWait> home) : LoopOperation<IoStatus>
{
    public ulong Lsn;

    protected override void OnTaken() => home.Push(this);
}
