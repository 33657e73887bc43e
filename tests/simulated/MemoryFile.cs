using BlockServer.Core;

namespace BlockServer.Tests.Simulated;

/// <summary>A medium in RAM without faults, for unit tests: answers arrive on the loop after a drawn delay.</summary>
public sealed class MemoryFile(SimLoop loop, ulong sizeBytes) : IFile
{
    private readonly Dictionary<ulong, byte[]> _pages = [];

    /// <inheritdoc/>
    public ulong SizeBytes => sizeBytes;

    /// <inheritdoc/>
    public ValueTask<IoStatus> ReadAsync(ulong offsetBytes, Memory<byte> target) => Later(() =>
    {
        for (int done = 0; done < target.Length; done += Units.BlockBytes)
        {
            Span<byte> block = target.Span.Slice(done, Units.BlockBytes);
            if (_pages.TryGetValue(offsetBytes + (ulong)done, out byte[]? page)) page.CopyTo(block);
            else block.Clear();
        }
    });

    /// <inheritdoc/>
    public ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source) => Later(() =>
    {
        for (int done = 0; done < source.Length; done += Units.BlockBytes)
            _pages[offsetBytes + (ulong)done] = source.Slice(done, Units.BlockBytes).ToArray();
    });

    /// <inheritdoc/>
    public ValueTask<IoStatus> FlushAsync() => Later(() => { });

    /// <inheritdoc/>
    public ValueTask<IoStatus> DiscardAsync(ulong offsetBytes, ulong lengthBytes) => new(IoStatus.NotSupported);

    private ValueTask<IoStatus> Later(Action effect)
    {
        var done = new LoopEvent<IoStatus>();
        loop.Schedule(1_000 + loop.Random.NextBelow(100_000UL), () =>
        {
            effect();
            done.Set(IoStatus.Ok);
        });
        return done.WaitAsync();
    }
}
