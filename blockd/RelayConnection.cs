using BlockServer.Core;
using BlockServer.Io;

namespace BlockServer.Blockd;

/// <summary>A stream of the runtime as a loop's connection: for what cannot be taken over, as TLS. Each receive and send goes by the thread
/// pool and back, and allocates. Lives on one loop. <paramref name="cut"/> ends the stream, from any thread.</summary>
internal sealed class RelayConnection(KernelLoop loop, Stream stream, string peer, Action cut) : IConnection
{
    private readonly LoopEventSource _receive = new(), _send = new();
    private byte[] _gathered = [];
    private bool _isClosed;

    /// <inheritdoc/>
    public string Peer => peer;

    /// <inheritdoc/>
    public ValueTask<int> ReceiveAsync(Memory<byte> target)
    {
        if (_isClosed) return new ValueTask<int>(-125);
        ValueTask<int> answer = _receive.Begin();
        _ = Task.Run(async () => Tell(_receive, await TryAsync(async () => await stream.ReadAsync(target))));
        return answer;
    }

    /// <inheritdoc/>
    public ValueTask<int> SendAsync(SendBatch batch)
    {
        if (_isClosed) return new ValueTask<int>(-125);
        int length = batch.LengthBytes, at = 0;
        if (_gathered.Length < length) _gathered = new byte[length];
        foreach (ReadOnlyMemory<byte> part in batch.Parts)
        {
            part.CopyTo(_gathered.AsMemory(at));
            at += part.Length;
        }

        ValueTask<int> answer = _send.Begin();
        _ = Task.Run(async () => Tell(_send, await TryAsync(async () =>
        {
            await stream.WriteAsync(_gathered.AsMemory(0, length));
            await stream.FlushAsync();
            return 0;
        })));
        return answer;
    }

    /// <summary>The runtime says the end of the stream when its request has been served, which is when this is closed.</summary>
    public void ShutdownSend()
    {
    }

    /// <inheritdoc/>
    public void Close()
    {
        if (_isClosed) return;
        _isClosed = true;
        if (_receive.IsPending || _send.IsPending) _ = Task.Run(cut);
    }

    private void Tell(LoopEventSource operation, int result) => loop.PostFromAnywhere(() => operation.Complete(_isClosed ? -125 : result));

    private static async Task<int> TryAsync(Func<Task<int>> work)
    {
        try
        {
            return await work();
        }
#pragma warning disable CA1031 // However a stream ends, it is over.
        catch (Exception)
#pragma warning restore CA1031
        {
            return -104;
        }
    }

    private sealed class LoopEventSource : LoopOperation<int>;
}
