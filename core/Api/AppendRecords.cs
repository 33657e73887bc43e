namespace BlockServer.Core.Api;

/// <summary>What bytes that are appended, or were, are called in HTTP.</summary>
public static class AppendMedia
{
    /// <summary>Content type of the bytes.</summary>
    public const string Type = "application/octet-stream";

    /// <summary>Header of an answer with bytes: the length of the volume.</summary>
    public const string LengthHeader = "Blockd-Length";

    /// <summary>Header of an answer with bytes: true when the volume never grows any more.</summary>
    public const string SealedHeader = "Blockd-Sealed";

    /// <summary>Most appends of one request: as many as are remembered of a client.</summary>
    public const int AppendsMax = 16;
}

/// <summary>An append-only volume.</summary>
/// <param name="Id">Number of the volume.</param>
/// <param name="Name">Name.</param>
/// <param name="LengthBytes">Bytes that were appended and are durable.</param>
/// <param name="SizeBytesMax">The length never exceeds this.</param>
/// <param name="Sealed">It takes nothing more.</param>
/// <param name="Clients">Clients whose appends are remembered.</param>
/// <param name="Revision">Revision of the volume.</param>
/// <param name="CreatedAt">When it was made.</param>
/// <param name="Description">The operator's words.</param>
public sealed record AofInfo(
    uint Id, string Name, ulong LengthBytes, ulong SizeBytesMax, bool Sealed, int Clients, long Revision, DateTimeOffset CreatedAt, string? Description);

/// <summary>Append-only volumes, by name; those whose disk does not serve are missing.</summary>
public sealed record AofList(IReadOnlyList<AofInfo> Volumes);

/// <summary>Opens an append-only volume, and creates it if there is none of that name.</summary>
/// <param name="Name">Name.</param>
/// <param name="SizeBytesMax">Of a new one: its length never exceeds this; default: as long as a volume may be.</param>
/// <param name="StoreId">Of a new one: the disk.</param>
/// <param name="Description">Of a new one: free text.</param>
/// <param name="Thin">Of a new one: false promises it room for all that it may become.</param>
public sealed record OpenAof(string Name, ulong? SizeBytesMax = null, Guid? StoreId = null, string? Description = null, bool? Thin = null);

/// <summary>Gives an append-only volume another name.</summary>
/// <param name="NewName">The name.</param>
/// <param name="Replace">An append-only volume that has the name gives way, at the same moment.</param>
public sealed record RenameAof(string NewName, bool Replace = false);

/// <summary>Seals an append-only volume; there is nothing to choose.</summary>
public sealed record SealAof;

/// <summary>One append that has landed and is durable.</summary>
/// <param name="OffsetBytes">Where its bytes begin.</param>
/// <param name="LengthBytes">How many they are.</param>
/// <param name="Repeated">It had landed before: this request was a repeat.</param>
public sealed record AppendedInfo(ulong OffsetBytes, uint LengthBytes, bool Repeated);

/// <summary>What pfcli says of appends that have landed.</summary>
/// <param name="OffsetBytes">Where the first of them begins.</param>
/// <param name="LengthBytes">How many bytes they are together.</param>
/// <param name="Appends">How many there were.</param>
public sealed record AppendSummary(ulong OffsetBytes, ulong LengthBytes, int Appends);

/// <summary>What became of a request to append, in the order of its appends. When one was refused (<paramref name="Code"/>) those
/// behind it were not begun; those in front have landed.</summary>
/// <param name="Appends">The appends that have landed.</param>
/// <param name="Code">Why the next one did not, or null; as in a problem.</param>
/// <param name="Detail">The same as a sentence.</param>
public sealed record AppendAnswerInfo(IReadOnlyList<AppendedInfo> Appends, string? Code = null, string? Detail = null);
