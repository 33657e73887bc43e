using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi;

/// <summary>Something that waits for its turn to be sent on one connection. Lives on the connection's loop.</summary>
internal abstract class Outgoing
{
    /// <summary>Appends PDUs to the connection's batch; true when all of it is there.</summary>
    public abstract bool Emit(IscsiConnection connection);

    /// <summary>Everything was sent, or never will be.</summary>
    public abstract void OnSent(IscsiConnection connection);
}

/// <summary>A PDU that is no answer to a SCSI command. Pooled by its connection. StatSN and window are filled in when it
/// is sent.</summary>
internal sealed class SmallPdu : Outgoing
{
    public const int InlineBytesMax = 256;

    /// <summary>The header, and up to <see cref="InlineBytesMax"/> bytes of data.</summary>
    public byte[] Bytes { get; } = new byte[IscsiWire.BhsSize + InlineBytesMax];

    public int InlineBytes { get; set; }

    /// <summary>Data instead of the inline ones.</summary>
    public ReadOnlyMemory<byte> Data { get; set; }

    /// <summary>Owner of the data, or null.</summary>
    public IoBuffer? Buffer { get; set; }

    /// <summary>Uses up a StatSN; R2T and pings only tell the next one.</summary>
    public bool TakesStatSn { get; set; }

    /// <summary>Called once it was sent, or null.</summary>
    public Action? Sent { get; set; }

    public SmallPdu? Next { get; set; }

    public override bool Emit(IscsiConnection connection)
    {
        if (!connection.HasRoom) return false;
        Span<byte> bhs = connection.BeginPdu();
        Bytes.AsSpan(0, IscsiWire.BhsSize).CopyTo(bhs);
        connection.NextNumbers(TakesStatSn).WriteTo(bhs);
        if (InlineBytes > 0) connection.EndPdu(Bytes.AsSpan(IscsiWire.BhsSize, InlineBytes));
        else connection.EndPdu(Data);
        return true;
    }

    public override void OnSent(IscsiConnection connection)
    {
        Action? sent = Sent;
        connection.Release(this);
        sent?.Invoke();
    }
}
