using BlockServer.Protocols.Iscsi.Scsi;
using static BlockServer.Protocols.Iscsi.IscsiHeader;

namespace BlockServer.Protocols.Iscsi;

/// <summary>SCSI Data-Out (RFC 7143, 11.7): F 0x80; LUN 8, ITT 16, TTT 20, ExpStatSN 28, DataSN 36, offset 40.</summary>
/// <param name="IsFinal">Last of its sequence.</param>
/// <param name="Lun">LUN field.</param>
/// <param name="Tag">Initiator task tag.</param>
/// <param name="TransferTag">That of the R2T, or none when unsolicited.</param>
/// <param name="ExpStatSn">Acknowledges statuses before it.</param>
/// <param name="DataSn">Number within its sequence.</param>
/// <param name="Offset">Where in the command's data, bytes.</param>
public readonly record struct DataOutPdu(
    bool IsFinal, ulong Lun, uint Tag, uint TransferTag, uint ExpStatSn, uint DataSn, uint Offset)
{
    /// <summary>Reads.</summary>
    public static DataOutPdu Read(ReadOnlySpan<byte> bhs) => new(
        (bhs[1] & 0x80) != 0, U64(bhs, 8), U32(bhs, 16), U32(bhs, 20), U32(bhs, 28), U32(bhs, 36), U32(bhs, 40));

    /// <summary>Writes.</summary>
    public void WriteTo(Span<byte> bhs, int dataBytes)
    {
        Begin(bhs, IscsiOpcode.DataOut, IsFinal ? 0x80 : 0, dataBytes);
        Put(bhs, 8, Lun);
        Put(bhs, 16, Tag);
        Put(bhs, 20, TransferTag);
        Put(bhs, 28, ExpStatSn);
        Put(bhs, 36, DataSn);
        Put(bhs, 40, Offset);
    }
}

/// <summary>SCSI Data-In (RFC 7143, 11.7): F 0x80, A 0x40, O 0x04, U 0x02, S 0x01; status 3, LUN 8, ITT 16, TTT 20,
/// numbers 24, DataSN 36, offset 40, residual 44. StatSN, status and residual are there with S only.</summary>
/// <param name="IsFinal">Last of its sequence.</param>
/// <param name="HasStatus">Carries the status as well.</param>
/// <param name="Status">SCSI status.</param>
/// <param name="Tag">Initiator task tag.</param>
/// <param name="Numbers">StatSN and window.</param>
/// <param name="DataSn">Number within the command.</param>
/// <param name="Offset">Where in the command's data, bytes.</param>
/// <param name="Residual">Left over.</param>
public readonly record struct DataInPdu(
    bool IsFinal, bool HasStatus, ScsiStatus Status, uint Tag, IscsiNumbers Numbers, uint DataSn, uint Offset, Residual Residual)
{
    /// <summary>Writes.</summary>
    public void WriteTo(Span<byte> bhs, int dataBytes)
    {
        int flags = (IsFinal ? 0x80 : 0) | (HasStatus ? 1 | Residual.Flags : 0);
        BeginAnswer(bhs, IscsiOpcode.DataIn, flags, dataBytes, Tag, Numbers);
        Put(bhs, 20, IscsiWire.NoTag);
        Put(bhs, 36, DataSn);
        Put(bhs, 40, Offset);
        if (!HasStatus)
        {
            Put(bhs, 24, 0u);
            return;
        }

        bhs[3] = (byte)Status;
        Put(bhs, 44, Residual.Bytes);
    }

    /// <summary>Reads.</summary>
    public static DataInPdu Read(ReadOnlySpan<byte> bhs) => new(
        (bhs[1] & 0x80) != 0, (bhs[1] & 1) != 0, (ScsiStatus)bhs[3], U32(bhs, 16), IscsiNumbers.Read(bhs), U32(bhs, 36),
        U32(bhs, 40), Residual.Read(bhs[1], U32(bhs, 44)));
}

/// <summary>Ready To Transfer (RFC 7143, 11.8): LUN 8, ITT 16, TTT 20, numbers 24 (StatSN is the next one's), R2TSN 36,
/// offset 40, length 44.</summary>
/// <param name="Lun">LUN field.</param>
/// <param name="Tag">Initiator task tag.</param>
/// <param name="TransferTag">To be repeated by the Data-Out.</param>
/// <param name="Numbers">StatSN and window.</param>
/// <param name="R2TSn">Number within the command.</param>
/// <param name="Offset">Where in the command's data, bytes.</param>
/// <param name="LengthBytes">How much.</param>
public readonly record struct R2TPdu(
    ulong Lun, uint Tag, uint TransferTag, IscsiNumbers Numbers, uint R2TSn, uint Offset, uint LengthBytes)
{
    /// <summary>Writes.</summary>
    public void WriteTo(Span<byte> bhs)
    {
        BeginAnswer(bhs, IscsiOpcode.R2T, 0x80, 0, Tag, Numbers);
        Put(bhs, 8, Lun);
        Put(bhs, 20, TransferTag);
        Put(bhs, 36, R2TSn);
        Put(bhs, 40, Offset);
        Put(bhs, 44, LengthBytes);
    }

    /// <summary>Reads.</summary>
    public static R2TPdu Read(ReadOnlySpan<byte> bhs) => new(
        U64(bhs, 8), U32(bhs, 16), U32(bhs, 20), IscsiNumbers.Read(bhs), U32(bhs, 36), U32(bhs, 40), U32(bhs, 44));
}
