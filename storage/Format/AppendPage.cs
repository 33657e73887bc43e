using System.Buffers.Binary;
using BlockServer.Core;

namespace BlockServer.Storage;

/// <summary>One append, as its record says it.</summary>
/// <param name="Place">Place of the client in the page, or <see cref="AppendPage.NoPlace"/>.</param>
/// <param name="Client">Identity of the client; empty without one.</param>
/// <param name="Sequence">Number of the append among the client's; 0 without one.</param>
/// <param name="OffsetBytes">Where the bytes begin: the length before it.</param>
/// <param name="LengthBytes">How many bytes, at least 1.</param>
/// <param name="Version">Version of the change.</param>
public readonly record struct AppendEntry(uint Place, Guid Client, ulong Sequence, ulong OffsetBytes, uint LengthBytes, ulong Version)
{
    /// <summary>Length of the volume after it.</summary>
    public ulong EndBytes => OffsetBytes + LengthBytes;

    /// <summary>It can be.</summary>
    public bool IsPossible =>
        LengthBytes is > 0 and <= Units.RequestBytesMax && OffsetBytes <= Units.VolumeBytesMax - LengthBytes && Version <= MetadataPage.VersionMax
        && (Place == AppendPage.NoPlace ? Client == Guid.Empty && Sequence == 0 : Place < AppendPage.PlacesMax && Client != Guid.Empty && Sequence > 0);
}

/// <summary>An append that is remembered.</summary>
/// <param name="Sequence">Its number; 0: none.</param>
/// <param name="OffsetBytes">Where it landed.</param>
/// <param name="LengthBytes">How long it is.</param>
public readonly record struct AppendMemory(ulong Sequence, ulong OffsetBytes, uint LengthBytes);

/// <summary>A client of an append-only volume and its last appends. Lives on one loop.</summary>
public sealed class AppendClient(Guid id)
{
    /// <summary>Appends that are remembered of a client.</summary>
    public const int MemoriesMax = 16;

    private readonly AppendMemory[] _memories = new AppendMemory[MemoriesMax];

    /// <summary>Identity.</summary>
    public Guid Id { get; } = id;

    /// <summary>Up to this number nothing is remembered; what landed above it is.</summary>
    public ulong Floor { get; set; }

    /// <summary>Version of its last append: the client with the lowest one is forgotten first.</summary>
    public ulong LastVersion { get; set; }

    /// <summary>The remembered appends, unused places last, as they lie on disk.</summary>
    public ReadOnlySpan<AppendMemory> Memories => _memories;

    /// <summary>Nothing is remembered of it yet.</summary>
    public bool IsNew => _memories[0].Sequence == 0;

    /// <summary>Finds an append; false when it did not land, or is not remembered (<see cref="IsTooOld"/>).</summary>
    public bool TryFind(ulong sequence, out AppendMemory memory)
    {
        foreach (AppendMemory one in _memories)
        {
            memory = one;
            if (one.Sequence == sequence) return true;
        }

        memory = default;
        return false;
    }

    /// <summary>Whether an append of that number, which is not found, landed cannot be told.</summary>
    public bool IsTooOld(ulong sequence) =>
        sequence <= Floor || (_memories[^1].Sequence != 0 && sequence < _memories[Lowest()].Sequence);

    /// <summary>Remembers an append; the one with the lowest number gives way. The same one again changes nothing.</summary>
    public void Remember(AppendMemory memory)
    {
        for (int i = 0; i < MemoriesMax; i++)
        {
            if (_memories[i].Sequence != memory.Sequence && _memories[i].Sequence != 0) continue;
            _memories[i] = memory;
            return;
        }

        int lowest = Lowest();
        Floor = Math.Max(Floor, _memories[lowest].Sequence);
        _memories[lowest] = memory;
    }

    private int Lowest()
    {
        int lowest = 0;
        for (int i = 1; i < MemoriesMax; i++)
        {
            if (_memories[i].Sequence < _memories[lowest].Sequence) lowest = i;
        }

        return lowest;
    }
}

/// <summary>
/// A metadata page of an append-only volume: how long the volume is after the last append that this page took, and some of
/// its clients. The volume's length is that of its longest page; every append changes one page. At 64 of the metadata page:
/// <code>
/// 0 u64 length; 8 u32 clients; 12 u32 0; 16: per client, 352 bytes each, in the order of their places (a free place is zeros):
///   0 16 B identity (big endian)   32: 16 appends {u64 sequence, u64 offset, u32 length}, unused ones last and zeros
///   16 u64 floor, 24 u64 version of the last append
/// </code>
/// Lives on one loop.
/// </summary>
public sealed class AppendPage
{
    /// <summary>Clients of one page.</summary>
    public const int PlacesMax = 10;

    /// <summary>Pages of one volume.</summary>
    public const int PagesMax = 8;

    /// <summary>An append without a client.</summary>
    public const uint NoPlace = uint.MaxValue;

    /// <summary>Bytes of the page that mean something.</summary>
    public const int Size = ClientsOffset + PlacesMax * ClientBytes;

    private const int ClientsOffset = 16, ClientBytes = 32 + AppendClient.MemoriesMax * MemoryBytes, MemoryBytes = 20;
    private readonly AppendClient?[] _clients = new AppendClient?[PlacesMax];

    /// <summary>Length of the volume after the last append that this page took.</summary>
    public ulong LengthBytes { get; set; }

    /// <summary>The client at a place, or null.</summary>
    public AppendClient? this[uint place]
    {
        get => _clients[place];
        set => _clients[place] = value;
    }

    /// <summary>The clients whose appends are remembered, in the order of their places.</summary>
    public IEnumerable<AppendClient> Clients => _clients.OfType<AppendClient>().Where(client => !client.IsNew);

    /// <summary>Takes an append over. Taking it again changes nothing.</summary>
    public void Take(in AppendEntry entry)
    {
        LengthBytes = Math.Max(LengthBytes, entry.EndBytes);
        if (entry.Place == NoPlace) return;
        ref AppendClient? client = ref _clients[entry.Place];
        if (client is null || client.Id != entry.Client) client = new AppendClient(entry.Client);
        client.LastVersion = Math.Max(client.LastVersion, entry.Version);
        client.Remember(new AppendMemory(entry.Sequence, entry.OffsetBytes, entry.LengthBytes));
    }

    /// <summary>Forgets every client.</summary>
    public void ForgetClients() => Array.Clear(_clients);

    /// <summary>Writes <see cref="Size"/> bytes.</summary>
    public void WriteTo(Span<byte> target)
    {
        target[..Size].Clear();
        BinaryPrimitives.WriteUInt64LittleEndian(target, LengthBytes);
        uint count = 0;
        for (int place = 0; place < PlacesMax; place++)
        {
            if (_clients[place] is not { IsNew: false } client) continue;
            count++;
            WriteClient(target.Slice(ClientsOffset + place * ClientBytes, ClientBytes), client);
        }

        BinaryPrimitives.WriteUInt32LittleEndian(target[8..], count);
    }

    /// <summary>Reads <see cref="Size"/> bytes; says why they are none, or null.</summary>
    public static string? TryRead(ReadOnlySpan<byte> source, out AppendPage? value)
    {
        value = null;
        if (source.Length < Size) return "append page: cut off";
        ulong length = BinaryPrimitives.ReadUInt64LittleEndian(source);
        if (length > Units.VolumeBytesMax) return "append page: impossible length";
        if (BinaryPrimitives.ReadUInt32LittleEndian(source[12..]) != 0) return "append page: reserved bytes are not zero";
        var read = new AppendPage { LengthBytes = length };
        uint count = 0;
        for (int place = 0; place < PlacesMax; place++)
        {
            ReadOnlySpan<byte> at = source.Slice(ClientsOffset + place * ClientBytes, ClientBytes);
            if (!at.ContainsAnyExcept((byte)0)) continue;
            if (ReadClient(at, length, out read._clients[place]) is { } fault) return fault;
            count++;
        }

        if (count != BinaryPrimitives.ReadUInt32LittleEndian(source[8..])) return "append page: its count of clients is wrong";
        value = read;
        return null;
    }

    private static void WriteClient(Span<byte> target, AppendClient client)
    {
        client.Id.TryWriteBytes(target, bigEndian: true, out _);
        BinaryPrimitives.WriteUInt64LittleEndian(target[16..], client.Floor);
        BinaryPrimitives.WriteUInt64LittleEndian(target[24..], client.LastVersion);
        target = target[32..];
        foreach (AppendMemory memory in client.Memories)
        {
            BinaryPrimitives.WriteUInt64LittleEndian(target, memory.Sequence);
            BinaryPrimitives.WriteUInt64LittleEndian(target[8..], memory.OffsetBytes);
            BinaryPrimitives.WriteUInt32LittleEndian(target[16..], memory.LengthBytes);
            target = target[MemoryBytes..];
        }
    }

    private static string? ReadClient(ReadOnlySpan<byte> source, ulong length, out AppendClient? client)
    {
        client = new AppendClient(new Guid(source[..16], bigEndian: true))
        {
            Floor = BinaryPrimitives.ReadUInt64LittleEndian(source[16..]),
            LastVersion = BinaryPrimitives.ReadUInt64LittleEndian(source[24..]),
        };
        if (client.Id == Guid.Empty || client.LastVersion > MetadataPage.VersionMax) return "append page: impossible client";
        bool isEnd = false;
        for (int i = 0; i < AppendClient.MemoriesMax; i++)
        {
            ReadOnlySpan<byte> at = source.Slice(32 + i * MemoryBytes, MemoryBytes);
            var memory = new AppendMemory(
                BinaryPrimitives.ReadUInt64LittleEndian(at), BinaryPrimitives.ReadUInt64LittleEndian(at[8..]), BinaryPrimitives.ReadUInt32LittleEndian(at[16..]));
            isEnd |= memory.Sequence == 0;
            if (isEnd && memory != default) return "append page: an append without a number";
            if (isEnd) continue;
            if (memory.Sequence <= client.Floor || memory.LengthBytes is 0 or > Units.RequestBytesMax
                || memory.OffsetBytes > length || memory.LengthBytes > length - memory.OffsetBytes) return "append page: impossible append";
            if (client.TryFind(memory.Sequence, out _)) return "append page: a number twice";
            client.Remember(memory);
        }

        return client.IsNew ? "append page: a client without appends" : null;
    }
}
