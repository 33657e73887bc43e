using System.Buffers.Binary;
using System.Text;
using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi.Scsi;

/// <summary>Types of persistent reservations (SPC-4, table 213).</summary>
public enum ReservationType : byte
{
    /// <summary>No reservation.</summary>
    None = 0,

    /// <summary>Only the holder writes.</summary>
    WriteExclusive = 1,

    /// <summary>Only the holder reads and writes.</summary>
    ExclusiveAccess = 3,

    /// <summary>Only registrants write.</summary>
    WriteExclusiveRegistrants = 5,

    /// <summary>Only registrants read and write.</summary>
    ExclusiveAccessRegistrants = 6,

    /// <summary>Only registrants write; all of them hold it.</summary>
    WriteExclusiveAll = 7,

    /// <summary>Only registrants read and write; all of them hold it.</summary>
    ExclusiveAccessAll = 8,
}

/// <summary>One registered I_T nexus, attached or not.</summary>
internal sealed class Registrant(string initiatorPort, ushort portalGroup, ulong key)
{
    public string InitiatorPort { get; } = initiatorPort;

    public ushort PortalGroup { get; } = portalGroup;

    public ulong Key { get; set; } = key;

    /// <summary>Registered by ALL_TG_PT.</summary>
    public bool IsOnAllPorts { get; set; }

    /// <summary>The nexus while it is attached.</summary>
    public UnitNexus? Nexus { get; set; }

    public bool Is(string initiatorPort, ushort portalGroup) =>
        PortalGroup == portalGroup && InitiatorPort.Equals(initiatorPort, StringComparison.OrdinalIgnoreCase);

    public Registrant Copy() => new(InitiatorPort, PortalGroup, Key) { IsOnAllPorts = IsOnAllPorts, Nexus = Nexus };
}

/// <summary>
/// The persistent reservations of one unit as they are at one moment: registrants, the reservation, the generation.
/// A change is made on a <see cref="Copy"/>, saved, and only then takes the old one's place. Pure; lives on one loop.
/// Saved bytes, little endian:
/// <code>
/// off  0            4          8            12        16     17        18      20
///      +------------+----------+------------+---------+------+---------+-------+--- registrants
///      | magic PRSV | crc u32  | generation | version | type | aptpl   | count |
///      +------------+----------+------------+---------+------+---------+-------+---
/// registrant: key u64, portal group u16, flags u8 (1 holder, 2 all ports), 0, name length u16, name UTF-8
/// </code>
/// The checksum covers what follows it.
/// </summary>
public sealed class PersistentReservations
{
    /// <summary>More registrants than this are refused with 05/55/04.</summary>
    public const int RegistrantsMax = 64;

    /// <summary>Most bytes of the saved form.</summary>
    public const int SavedBytesMax = HeaderBytes + RegistrantsMax * (14 + NameBytesMax);

    internal const int NameBytesMax = 255;
    private const int HeaderBytes = 20;
    private const uint Magic = 0x56535250;
    private const uint Version = 1;

    internal List<Registrant> Registrants { get; } = [];

    /// <summary>Counts registrations and preemptions (PRGENERATION); starts at zero with the daemon.</summary>
    public uint Generation { get; internal set; }

    /// <summary>Type of the reservation.</summary>
    public ReservationType Type { get; internal set; }

    /// <summary>Kept over a power loss (APTPL).</summary>
    public bool IsPersistent { get; internal set; }

    internal Registrant? Holder { get; set; }

    /// <summary>All registrants hold the reservation.</summary>
    internal bool IsAll => Type is ReservationType.WriteExclusiveAll or ReservationType.ExclusiveAccessAll;

    /// <summary>Registrants may do what the holder may.</summary>
    internal bool IsForRegistrants => Type >= ReservationType.WriteExclusiveRegistrants;

    internal bool IsWriteExclusive =>
        Type is ReservationType.WriteExclusive or ReservationType.WriteExclusiveRegistrants or ReservationType.WriteExclusiveAll;

    internal Registrant? Find(string initiatorPort, ushort portalGroup) =>
        Registrants.Find(r => r.Is(initiatorPort, portalGroup));

    internal bool IsHolder(Registrant? registrant) =>
        registrant is not null && Type != ReservationType.None && (IsAll || Holder == registrant);

    internal void Release() => (Type, Holder) = (ReservationType.None, null);

    internal void Reserve(ReservationType type, Registrant holder)
    {
        Type = type;
        Holder = IsAll ? null : holder;
    }

    /// <summary>Takes one away; the reservation goes with its last holder. True when the reservation went.</summary>
    internal bool Remove(Registrant registrant)
    {
        Registrants.Remove(registrant);
        bool ends = Type != ReservationType.None && (Holder == registrant || (IsAll && Registrants.Count == 0));
        if (ends) Release();
        return ends;
    }

    internal PersistentReservations Copy()
    {
        var copy = new PersistentReservations { Generation = Generation, Type = Type, IsPersistent = IsPersistent };
        foreach (Registrant registrant in Registrants)
        {
            Registrant one = registrant.Copy();
            copy.Registrants.Add(one);
            if (registrant == Holder) copy.Holder = one;
        }

        return copy;
    }

    /// <summary>The saved form; nothing is kept of reservations without APTPL.</summary>
    internal byte[] ToBytes()
    {
        using var stream = new MemoryStream();
        Span<byte> head = stackalloc byte[HeaderBytes];
        head.Clear();
        List<Registrant> kept = IsPersistent ? Registrants : [];
        BinaryPrimitives.WriteUInt32LittleEndian(head, Magic);
        BinaryPrimitives.WriteUInt32LittleEndian(head[8..], Generation);
        BinaryPrimitives.WriteUInt32LittleEndian(head[12..], Version);
        head[16] = IsPersistent ? (byte)Type : (byte)0;
        head[17] = IsPersistent ? (byte)1 : (byte)0;
        BinaryPrimitives.WriteUInt16LittleEndian(head[18..], (ushort)kept.Count);
        stream.Write(head);
        Span<byte> fixedPart = stackalloc byte[14];
        foreach (Registrant registrant in kept)
        {
            byte[] name = Encoding.UTF8.GetBytes(registrant.InitiatorPort);
            fixedPart.Clear();
            BinaryPrimitives.WriteUInt64LittleEndian(fixedPart, registrant.Key);
            BinaryPrimitives.WriteUInt16LittleEndian(fixedPart[8..], registrant.PortalGroup);
            fixedPart[10] = (byte)((registrant == Holder ? 1 : 0) | (registrant.IsOnAllPorts ? 2 : 0));
            BinaryPrimitives.WriteUInt16LittleEndian(fixedPart[12..], (ushort)name.Length);
            stream.Write(fixedPart);
            stream.Write(name);
        }

        byte[] bytes = stream.ToArray();
        BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(4), Crc32C.Compute(bytes.AsSpan(8)));
        return bytes;
    }

    /// <summary>Reads the saved form; says why the bytes are none, or null. No bytes are an empty state.</summary>
    public static string? TryRead(ReadOnlySpan<byte> bytes, out PersistentReservations state)
    {
        state = new PersistentReservations();
        if (bytes.IsEmpty) return null;
        if (bytes.Length < HeaderBytes || bytes.Length > SavedBytesMax) return "the length is wrong";
        if (BinaryPrimitives.ReadUInt32LittleEndian(bytes) != Magic) return "these are no reservations";
        if (BinaryPrimitives.ReadUInt32LittleEndian(bytes[4..]) != Crc32C.Compute(bytes[8..])) return "the checksum does not match";
        if (BinaryPrimitives.ReadUInt32LittleEndian(bytes[12..]) != Version) return "the version is not known";
        var read = new PersistentReservations
        {
            Generation = BinaryPrimitives.ReadUInt32LittleEndian(bytes[8..]),
            Type = (ReservationType)bytes[16],
            IsPersistent = bytes[17] == 1,
        };
        int count = BinaryPrimitives.ReadUInt16LittleEndian(bytes[18..]);
        if (count > RegistrantsMax || bytes[17] > 1) return "a field is out of range";
        bytes = bytes[HeaderBytes..];
        for (int i = 0; i < count; i++)
        {
            if (bytes.Length < 14) return "a registrant is cut off";
            int nameBytes = BinaryPrimitives.ReadUInt16LittleEndian(bytes[12..]);
            if (nameBytes is 0 or > NameBytesMax || bytes.Length < 14 + nameBytes || bytes[10] > 3) return "a registrant is damaged";
            var registrant = new Registrant(
                Encoding.UTF8.GetString(bytes.Slice(14, nameBytes)), BinaryPrimitives.ReadUInt16LittleEndian(bytes[8..]),
                BinaryPrimitives.ReadUInt64LittleEndian(bytes)) { IsOnAllPorts = (bytes[10] & 2) != 0 };
            if ((bytes[10] & 1) != 0 && read.Holder is not null) return "there are two holders";
            if ((bytes[10] & 1) != 0) read.Holder = registrant;
            read.Registrants.Add(registrant);
            bytes = bytes[(14 + nameBytes)..];
        }

        if (!bytes.IsEmpty) return "something follows";
        if (!Enum.IsDefined(read.Type)) return "the type is not known";
        bool needsHolder = read.Type != ReservationType.None && !read.IsAll;
        if (needsHolder != read.Holder is not null || (read.IsAll && count == 0)) return "holder and type do not fit";
        state = read;
        return null;
    }
}

/// <summary>TransportIDs of iSCSI (SPC-4, 7.6.4.6): format and protocol, 0, length u16, the name, zeros up to four.</summary>
internal static class TransportId
{
    /// <summary>Writes format 01b (name and ISID); answers the length.</summary>
    public static int Write(Span<byte> target, string initiatorPort)
    {
        int length = Math.Max(20, (Encoding.UTF8.GetByteCount(initiatorPort) + 4) & ~3);
        target[..(4 + length)].Clear();
        target[0] = 0x45;
        BinaryPrimitives.WriteUInt16BigEndian(target[2..], (ushort)length);
        Encoding.UTF8.GetBytes(initiatorPort, target[4..]);
        return 4 + length;
    }

    /// <summary>Reads one at the front of <paramref name="source"/>. False when it is none; <paramref name="hasIsid"/> tells
    /// whether it names a port or only an initiator.</summary>
    public static bool TryRead(ReadOnlySpan<byte> source, out string name, out bool hasIsid, out int length)
    {
        (name, hasIsid, length) = ("", false, 0);
        if (source.Length < 24 || (source[0] & 0x3F) != 0x05 || source[0] >> 6 > 1 || source[1] != 0) return false;
        int body = BinaryPrimitives.ReadUInt16BigEndian(source[2..]);
        if (body < 20 || body % 4 != 0 || source.Length < 4 + body) return false;
        ReadOnlySpan<byte> text = source.Slice(4, body);
        int end = text.IndexOf((byte)0);
        if (end < 1 || end > PersistentReservations.NameBytesMax) return false;
        foreach (byte b in text[..end])
        {
            if (b is <= 0x20 or >= 0x7F) return false;
        }

        name = Encoding.ASCII.GetString(text[..end]);
        hasIsid = source[0] >> 6 == 1;
        length = 4 + body;
        int mark = name.IndexOf(",i,0x", StringComparison.Ordinal);
        return hasIsid ? mark > 0 && name.Length > mark + 5 : mark < 0;
    }
}
