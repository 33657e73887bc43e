using BlockServer.Storage;

namespace BlockServer.Pfinspect;

// Append-only volumes: their length and what the log brings forward of it.
public sealed partial class StoreImage
{
    /// <summary>The pages of an append-only volume.</summary>
    public IEnumerable<SlotPage> AppendsOf(uint volumeId) =>
        Slots.Values.Where(p => p.Kind == MetadataKind.Appends && p.VolumeId == volumeId).OrderBy(p => p.Extent);

    /// <summary>Length of an append-only volume: that of its longest page.</summary>
    public ulong LengthOf(uint volumeId) => AppendsOf(volumeId).Select(p => p.Appends!.LengthBytes).DefaultIfEmpty().Max();

    private void ApplyBeginAppends(in RedoRecord record, ulong lsn) => Slots[record.Slot] = new SlotPage
    {
        Slot = record.Slot, Kind = MetadataKind.Appends, VolumeId = record.VolumeId, Extent = record.Extent, PageLsn = lsn,
        Appends = new AppendPage { LengthBytes = record.AppendedBytes },
    };

    private string ApplyAppend(in RedoRecord record, ulong lsn, SlotPage? page, string where, bool isGood)
    {
        if (page is not { Kind: MetadataKind.Appends } || page.VolumeId != record.VolumeId || page.Extent != record.Extent)
        {
            Problems.Error("log", where, $"appends to page {record.Extent} of volume {record.VolumeId}, which slot {record.Slot} does not hold");
            return "drop";
        }

        page.PageLsn = lsn;
        if (!isGood) return "drop";
        page.Appends!.Take(record.AppendEntry);
        return "replay";
    }

    /// <summary>Behind an append that is dropped there is no place for the next one.</summary>
    private bool FollowsLength(byte[] page, int offset, RedoPageHeader header)
    {
        while (RedoRecord.TryRead(page, offset, header.UsedBytes, out RedoRecord record) is null)
        {
            if (record.Kind == RedoKind.Append) return record.AppendEntry.OffsetBytes <= LengthOf(record.VolumeId);
            if (!record.IsContinued) return true;
            offset += record.Length;
        }

        return true;
    }
}
