using BlockServer.Core;

namespace BlockServer.Tests.Unit.Storage;

/// <summary>A medium of which one request fails, by its number; it also counts, and can be taken away as a death does.</summary>
internal sealed class NthFile(IFile medium) : IFile
{
    private bool _isCut;

    /// <summary>Requests so far.</summary>
    public int Count { get; private set; }

    /// <summary>Number of the request that fails, from 1 on; 0: none.</summary>
    public int FailAt { get; set; }

    /// <summary>Every flush fails.</summary>
    public bool FailFlushes { get; set; }

    /// <summary>First and end offset of every write.</summary>
    public List<(ulong Start, ulong End)> Writes { get; } = [];

    public ulong SizeBytes => medium.SizeBytes;

    public void Cut() => _isCut = true;

    public ValueTask<IoStatus> ReadAsync(ulong offsetBytes, Memory<byte> target) =>
        Next(() => medium.ReadAsync(offsetBytes, target), FailAt);

    public ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source)
    {
        Writes.Add((offsetBytes, offsetBytes + (ulong)source.Length));
        // A failed write may have done its part: odd ones did.
        return Next(() => medium.WriteAsync(offsetBytes, source), FailAt, isDone: FailAt % 2 == 1);
    }

    public ValueTask<IoStatus> FlushAsync() => Next(medium.FlushAsync, FailFlushes ? Count + 1 : FailAt);

    public ValueTask<IoStatus> DiscardAsync(ulong offsetBytes, ulong lengthBytes) => new(IoStatus.NotSupported);

    private ValueTask<IoStatus> Next(Func<ValueTask<IoStatus>> begin, int failAt, bool isDone = false)
    {
        if (_isCut) return new LoopEvent<IoStatus>().WaitAsync();
        if (++Count != failAt) return begin();
        return Fail(isDone ? begin() : medium.FlushAsync());
    }

    private static async ValueTask<IoStatus> Fail(ValueTask<IoStatus> under)
    {
        await under;
        return IoStatus.IoError;
    }
}
