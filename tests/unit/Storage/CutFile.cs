using BlockServer.Core;

namespace BlockServer.Tests.Unit.Storage;

/// <summary>A medium that can be taken away from a store, as the death of its process does: later requests never answer.</summary>
internal sealed class CutFile(IFile medium) : IFile
{
    private bool _isCut;

    public IFile Medium => medium;

    public ulong SizeBytes => medium.SizeBytes;

    public void Cut() => _isCut = true;

    public ValueTask<IoStatus> ReadAsync(ulong offsetBytes, Memory<byte> target) =>
        _isCut ? Never() : medium.ReadAsync(offsetBytes, target);

    public ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source) =>
        _isCut ? Never() : medium.WriteAsync(offsetBytes, source);

    public ValueTask<IoStatus> FlushAsync() => _isCut ? Never() : medium.FlushAsync();

    public ValueTask<IoStatus> DiscardAsync(ulong offsetBytes, ulong lengthBytes) =>
        _isCut ? Never() : medium.DiscardAsync(offsetBytes, lengthBytes);

    private static ValueTask<IoStatus> Never() => new LoopEvent<IoStatus>().WaitAsync();
}
