using BlockServer.Core;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Makes disks that stop to answer.</summary>
internal sealed class StuckFile
{
    private readonly TaskCompletionSource _released = new();
    private volatile bool _isStuck;

    public bool IsStuck
    {
        get => _isStuck;
        set => _isStuck = value;
    }

    public void Release() => _released.TrySetResult();

    public IFile Around(IFile file) => new Layer(this, file);

    private async ValueTask<IoStatus> PassAsync(Func<ValueTask<IoStatus>> request)
    {
        if (!_isStuck) return await request();
        await _released.Task;
        return IoStatus.IoError;
    }

    private sealed class Layer(StuckFile owner, IFile file) : IFile
    {
        public ulong SizeBytes => file.SizeBytes;

        public ValueTask<IoStatus> ReadAsync(ulong offsetBytes, Memory<byte> target) => owner.PassAsync(() => file.ReadAsync(offsetBytes, target));

        public ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source) => owner.PassAsync(() => file.WriteAsync(offsetBytes, source));

        public ValueTask<IoStatus> FlushAsync() => owner.PassAsync(file.FlushAsync);

        public ValueTask<IoStatus> DiscardAsync(ulong offsetBytes, ulong lengthBytes) => owner.PassAsync(() => file.DiscardAsync(offsetBytes, lengthBytes));
    }
}

/// <summary>Makes disks whose flushes, reads or writes fail; only the first disk that it is put around.</summary>
internal sealed class FaultyFile
{
    private bool _isTaken;

    public bool FailsFlush { get; set; }

    public bool FailsWrites { get; set; }

    /// <summary>Every read of this range fails.</summary>
    public Range? FailsReads { get; set; }

    /// <summary>Told of every write when it begins.</summary>
    public Action<ulong, ReadOnlyMemory<byte>>? Writing { get; set; }

    public IFile Around(IFile? file)
    {
        if (_isTaken || file is null) return file!;
        _isTaken = true;
        return new Layer(this, file);
    }

    private sealed class Layer(FaultyFile owner, IFile file) : IFile
    {
        public ulong SizeBytes => file.SizeBytes;

        public async ValueTask<IoStatus> ReadAsync(ulong offsetBytes, Memory<byte> target) =>
            owner.FailsReads is { } range && offsetBytes < (ulong)range.End.Value && offsetBytes + (ulong)target.Length > (ulong)range.Start.Value
                ? await FailAsync(file.ReadAsync(offsetBytes, target)) : await file.ReadAsync(offsetBytes, target);

        public ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source)
        {
            owner.Writing?.Invoke(offsetBytes, source);
            return WriteOrFailAsync(offsetBytes, source);
        }

        private async ValueTask<IoStatus> WriteOrFailAsync(ulong offsetBytes, ReadOnlyMemory<byte> source) =>
            owner.FailsWrites ? await FailAsync(file.WriteAsync(offsetBytes, source)) : await file.WriteAsync(offsetBytes, source);

        public async ValueTask<IoStatus> FlushAsync() => owner.FailsFlush ? await FailAsync(file.FlushAsync()) : await file.FlushAsync();

        public ValueTask<IoStatus> DiscardAsync(ulong offsetBytes, ulong lengthBytes) => file.DiscardAsync(offsetBytes, lengthBytes);

        private static async ValueTask<IoStatus> FailAsync(ValueTask<IoStatus> request)
        {
            await request; // it answers later, as a disk does
            return IoStatus.IoError;
        }
    }
}
