namespace BlockServer.Tests.Recovery;

/// <summary>What a verifier asks of a volume besides reads.</summary>
internal enum DiskCommand
{
    Write,
    Flush,
    Trim,
    WriteZeroes,
}

/// <summary>How a verifier reaches the daemon.</summary>
public enum Wire
{
    /// <summary>Four NBD connections, two over TCP and two over the unix socket.</summary>
    Nbd,

    /// <summary>Four iSCSI sessions.</summary>
    Iscsi,

    /// <summary>Two NBD connections and two iSCSI sessions on the same volume.</summary>
    Both,
}

/// <summary>A client of one volume with several requests under way. Lives on one thread. A lost connection throws
/// <see cref="IOException"/>.</summary>
internal interface IDiskClient : IDisposable
{
    /// <summary>Sends one request; its answer is taken with <see cref="Receive"/>. Offsets and lengths are bytes, whole sectors.</summary>
    void Send(DiskCommand command, bool isFua, bool noHole, ulong cookie, long offset, int length, ReadOnlySpan<byte> data);

    /// <summary>Takes the next answer, whichever request it belongs to, and its error (0 is good).</summary>
    (ulong Cookie, uint Error) Receive();

    /// <summary>Reads a range; false with the server's error. No other request may be under way.</summary>
    bool TryReadRange(long offset, int length, out byte[] data, out uint error);
}
