namespace BlockServer.Core;

/// <summary>
/// A byte stream to one peer: a TCP or unix socket, a TLS session over one, or in the simulation two ends of a pipe
/// that delivers byte by byte and is cut anywhere. Lives on one loop. At most one receive and one send are outstanding.
/// Negative answers are <c>-errno</c>-like and final: the only thing left to do is <see cref="Close"/>.
/// </summary>
public interface IConnection
{
    /// <summary>Address of the peer for logs and session lists, e.g. <c>127.0.0.1:51234</c> or <c>unix:/run/x.sock</c>.</summary>
    string Peer { get; }

    /// <summary>Receives at least one byte into <paramref name="target"/>: the count, 0 at the end of the stream, negative on error.</summary>
    ValueTask<int> ReceiveAsync(Memory<byte> target);

    /// <summary>Takes what has arrived already, without waiting: the count, 0 at the end of the stream, negative when nothing is
    /// there or this connection cannot tell (then ask <see cref="ReceiveAsync"/>). No receive may be outstanding.</summary>
    int ReceiveNow(Memory<byte> target) => -11; // -EAGAIN

    /// <summary>Sends all parts of <paramref name="batch"/> in order, completely; 0 when done, negative on error. The parts
    /// are borrowed until the answer.</summary>
    ValueTask<int> SendAsync(SendBatch batch);

    /// <summary>Says that no more will be sent (FIN), after what was sent. Idempotent.</summary>
    void ShutdownSend();

    /// <summary>Ends the connection; outstanding operations answer negatively, on the loop. Idempotent.</summary>
    void Close();
}

/// <summary>The parts of one gathered send. Reused; owned by the sender. Not for two sends at once.</summary>
public sealed class SendBatch
{
    /// <summary>Most parts in one batch; the kernel takes 1,024 (IOV_MAX), beyond 128 a batch gains nothing.</summary>
    public const int PartsMax = 128;

    private readonly ReadOnlyMemory<byte>[] _parts;

    /// <summary>A batch of at most <paramref name="partsMax"/> parts.</summary>
    public SendBatch(int partsMax = PartsMax) => _parts = new ReadOnlyMemory<byte>[partsMax];

    /// <summary>How many parts.</summary>
    public int Count { get; private set; }

    /// <summary>Sum of all parts' lengths.</summary>
    public int LengthBytes { get; private set; }

    /// <summary>No room for another part.</summary>
    public bool IsFull => Count == _parts.Length;

    /// <summary>The parts in order.</summary>
    public ReadOnlySpan<ReadOnlyMemory<byte>> Parts => _parts.AsSpan(0, Count);

    /// <summary>Appends a part; empty ones are skipped. The batch must not be full.</summary>
    public void Add(ReadOnlyMemory<byte> part)
    {
        if (part.IsEmpty) return;
        Check.That(!IsFull);
        _parts[Count++] = part;
        LengthBytes += part.Length;
    }

    /// <summary>Forgets all parts.</summary>
    public void Clear()
    {
        _parts.AsSpan(0, Count).Clear();
        Count = 0;
        LengthBytes = 0;
    }
}

/// <summary>
/// Upgrades a plain connection to TLS, on the loop, as the server side. Given to a protocol by the daemon; null there
/// means that TLS is not configured.
/// </summary>
public interface ITlsUpgrade
{
    /// <summary>Runs the handshake over <paramref name="plain"/>; the TLS connection, or null when the handshake failed
    /// (the caller closes <paramref name="plain"/>). It has no deadline: closing <paramref name="plain"/> ends it. The peer's certificate subject, if any, is in
    /// <see cref="TlsResult.PeerSubject"/>.</summary>
    ValueTask<TlsResult> UpgradeAsync(IConnection plain);
}

/// <summary>What a TLS handshake gave.</summary>
public readonly record struct TlsResult(IConnection? Connection, string? PeerSubject, string? Failure);
