using BlockServer.Core;

namespace BlockServer.Tests.Unit;

/// <summary>Answers sends at once and receives when told; allocates nothing.</summary>
internal sealed class ScriptedConnection : IConnection
{
    private readonly LoopOperation<int> _receive = new();
    private Memory<byte> _target;

    public string Peer => "script";

    /// <summary>Somebody waits for bytes.</summary>
    public bool IsReceiving => _receive.IsPending;

    public void Deliver(ReadOnlySpan<byte> bytes)
    {
        while (!bytes.IsEmpty)
        {
            int count = Math.Min(bytes.Length, _target.Length);
            bytes[..count].CopyTo(_target.Span);
            bytes = bytes[count..];
            _receive.Complete(count);
        }
    }

    public ValueTask<int> ReceiveAsync(Memory<byte> target)
    {
        _target = target;
        return _receive.Begin();
    }

    /// <summary>How many sends so far.</summary>
    public int Sends { get; private set; }

    public ValueTask<int> SendAsync(SendBatch batch)
    {
        Sends++;
        return new ValueTask<int>(0);
    }

    public void ShutdownSend()
    {
    }

    public void Close()
    {
    }
}
