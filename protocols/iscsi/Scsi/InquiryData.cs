using System.Buffers.Binary;
using System.Text;
using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi.Scsi;

/// <summary>The bytes of standard INQUIRY data and of designators (SPC-4, 6.6.2 and 7.8.6).</summary>
internal static class InquiryData
{
    /// <summary>Length of the standard data, bytes.</summary>
    public const int StandardBytes = 96;

    private const int BlockType = 0x00;

    /// <summary>
    /// Standard data: type and qualifier, RMB, version 06 (SPC-4), format 12 (HISUP), length, flags, vendor, product,
    /// revision, version descriptors at 58.
    /// </summary>
    public static int WriteStandard(
        Span<byte> target, byte type, bool isRemovable, byte flags, string vendor, string product, string revision)
    {
        target[..StandardBytes].Clear();
        target[0] = type;
        target[1] = isRemovable ? (byte)0x80 : (byte)0;
        target[2] = 0x06;
        target[3] = 0x12;
        target[4] = StandardBytes - 5;
        target[5] = flags;
        target[6] = 0x10; // MULTIP
        target[7] = 0x02; // CMDQUE
        PutText(target.Slice(8, 8), vendor);
        PutText(target.Slice(16, 16), product);
        PutText(target.Slice(32, 4), revision);
        BinaryPrimitives.WriteUInt16BigEndian(target[58..], 0x00A0); // SAM-5
        BinaryPrimitives.WriteUInt16BigEndian(target[60..], 0x0960); // iSCSI
        BinaryPrimitives.WriteUInt16BigEndian(target[62..], 0x0460); // SPC-4
        if ((type & 0x1F) == BlockType) BinaryPrimitives.WriteUInt16BigEndian(target[64..], 0x04C0); // SBC-3
        return StandardBytes;
    }

    /// <summary>Unit serial number: the uuid in hexadecimal, 32 characters.</summary>
    public static string Serial(LogicalUnitOptions options) => options.Uuid.ToString("N");

    /// <summary>
    /// The designators of the unit, the same on every port: NAA locally assigned (8 bytes, 3 and 60 bits of the uuid's
    /// random part), T10 vendor (vendor and serial number), UUID (18 bytes, SPC-5).
    /// </summary>
    public static byte[][] UnitDesignators(LogicalUnitOptions options)
    {
        var uuid = new byte[16];
        options.Uuid.TryWriteBytes(uuid, bigEndian: true, out _);
        var naa = new byte[12];
        (naa[0], naa[1], naa[3]) = (0x01, 0x03, 8);
        ulong folded = BinaryPrimitives.ReadUInt64BigEndian(uuid) ^ BinaryPrimitives.ReadUInt64BigEndian(uuid.AsSpan(8));
        BinaryPrimitives.WriteUInt64BigEndian(naa.AsSpan(4), (folded & 0x0FFF_FFFF_FFFF_FFFF) | 0x3000_0000_0000_0000);
        var t10 = new byte[4 + 40];
        (t10[0], t10[1], t10[3]) = (0x02, 0x01, 40);
        PutText(t10.AsSpan(4, 8), options.Vendor);
        PutText(t10.AsSpan(12, 32), Serial(options));
        var own = new byte[4 + 18];
        (own[0], own[1], own[3], own[4]) = (0x01, 0x0A, 18, 0x10);
        uuid.CopyTo(own, 6);
        return [naa, t10, own];
    }

    /// <summary>A SCSI name string designator (UTF-8, zero ended, padded to four), PIV and iSCSI set; answers its length.</summary>
    public static int WriteName(Span<byte> target, int association, string name)
    {
        int length = (Encoding.UTF8.GetByteCount(name) + 4) & ~3;
        target[..(4 + length)].Clear();
        target[0] = 0x53;
        target[1] = (byte)(0x80 | (association << 4) | 0x08);
        target[3] = (byte)length;
        Encoding.UTF8.GetBytes(name, target[4..]);
        return 4 + length;
    }

    /// <summary>Name of a target port: IQN,t,0xTAG.</summary>
    public static string PortName(string target, ushort portalGroup) => $"{target},t,0x{portalGroup:x4}";

    /// <summary>ASCII, padded with spaces.</summary>
    public static void PutText(Span<byte> target, string text)
    {
        target.Fill((byte)' ');
        Check.That(text.Length <= target.Length);
        Encoding.ASCII.GetBytes(text, target);
    }
}
