using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Cluster;

// Append-only volumes: what of a volume they are not, seals, and names that go over from one to another in one transaction.
public sealed partial class VolumeDirectory
{
    /// <summary>Why what would overwrite a volume is refused: it is append-only. Null when it is not.</summary>
    public static DirectoryFault? AppendOnlyFault(VolumeRecord volume) => !volume.IsAppendOnly ? null : new(
        IoStatus.Conflict, "volume-is-append-only", $"'{volume.Name}' is append-only: nothing of it can be overwritten; pfcli aof_append adds to its end");

    /// <summary>Seals an append-only volume: it takes nothing more, for ever. Doing it again changes nothing.</summary>
    public Task<DirectoryResult> SealAsync(string name) => ChangeAloneAsync(async () =>
    {
        if (Find(name) is not { } old) return NoVolume(name);
        if (!old.IsAppendOnly) return NotAppendOnly(old);
        if (old.IsSealed) return old;
        if (!_hosts.TryGetValue(old.StoreId, out IVolumeHost? host)) return StoreFault(IoStatus.Unavailable);
        VolumeRecord wanted = old with { IsSealed = true };
        _unsettled.Add(old.Id);
        // Once it is written that it is sealed, it is carried through: by this, by the next settling or by the next start.
        MetaResult written = await WriteAsync(wanted with { State = VolumeState.Changing });
        if (written.Outcome != MetaOutcome.Committed)
        {
            _unsettled.Remove(old.Id);
            return MetaCommit.FaultOf(written.Outcome);
        }

        Show(wanted with { State = VolumeState.Changing, Revision = written.Revision });
        IoStatus status = await host.UpdateAsync(HeadOf(wanted));
        await SettleAsync();
        return status == IoStatus.Ok && Find(name) is { } done ? done : StoreFault(status);
    });

    /// <summary>Gives an append-only volume another name. With <paramref name="replaces"/> a volume that has it gives way: from
    /// one moment on the name is this one's, and what the other one takes comes back in the background.</summary>
    public Task<DirectoryResult> RenameAsync(string name, string newName, bool replaces) => ChangeAloneAsync(async () =>
    {
        if (!VolumeName.IsValid(newName, out string? reason)) return new DirectoryFault(IoStatus.Invalid, "invalid-name", reason, "newName");
        if (Find(name) is not { } old) return NoVolume(name);
        if (!old.IsAppendOnly) return NotAppendOnly(old);
        if (newName == name) return old;
        VolumeRecord? other = Find(newName);
        if (other is not null && !replaces) return NameTaken(newName) with { Field = "newName" };
        if (other is { IsAppendOnly: false }) return NotAppendOnly(other) with { Field = "newName" };
        if (!_hosts.ContainsKey(old.StoreId) || (other is not null && !_hosts.ContainsKey(other.StoreId))) return StoreFault(IoStatus.Unavailable);
        if (other is not null && MoveFault(other) is { } moving) return moving;
        if (Quota?.FaultOf(newName, old.SizeBytes, old, List()) is { } tooMuch) return tooMuch;
        if (other is not null && await LayerFaultAsync(other, withSnapshots: false) is { } inTheWay) return inTheWay;
        return await TakeNameAsync(old, newName, other);
    });

    private async Task<DirectoryResult> TakeNameAsync(VolumeRecord old, string newName, VolumeRecord? other)
    {
        VolumeRecord wanted = old with { Name = newName, State = VolumeState.Changing };
        var compares = new List<MetaCompare> { new(VolumeKey(old.Id), old.Revision) };
        var changes = new List<MetaChange>
        {
            new(VolumeKey(old.Id), Encode(wanted)), new(NameKey(newName), Number(old.Id)), new(NameKey(old.Name), null),
        };
        _unsettled.Add(old.Id);
        if (other is null)
        {
            compares.Add(new MetaCompare(NameKey(newName), 0));
        }
        else
        {
            compares.Add(new MetaCompare(VolumeKey(other.Id), other.Revision));
            changes.Add(new MetaChange(VolumeKey(other.Id), Encode(other with { State = VolumeState.Deleting })));
            _unsettled.Add(other.Id);
        }

        MetaResult written = await CommitAsync(compares, changes);
        if (written.Outcome != MetaOutcome.Committed)
        {
            _unsettled.Remove(old.Id);
            if (other is not null) _unsettled.Remove(other.Id);
            return MetaCommit.FaultOf(written.Outcome);
        }

        // Done for good: the heads on the disks follow now, or at the next settling or start.
        if (other is not null) _table.Hide(other.Id);
        Show(wanted with { Revision = written.Revision });
        await SettleAsync();
        return Find(newName) is { } done ? done : NoVolume(newName);
    }

    private static ExportOptions ExportOf(ExportOptions export, bool isAppendOnly)
    {
        ExportOptions kept = export with { NbdClients = NbdClients.Normalize(export.NbdClients) };
        return isAppendOnly ? kept with { ReadOnly = true, Thick = false } : kept;
    }

    private static DirectoryFault NotAppendOnly(VolumeRecord volume) =>
        new(IoStatus.Conflict, "not-append-only", $"'{volume.Name}' is an ordinary volume; pfcli aof_list shows the append-only ones");

    private static DirectoryFault? SealedFault(VolumeRecord volume) => !volume.IsSealed ? null : new(
        IoStatus.Conflict, "volume-is-sealed", $"'{volume.Name}' is sealed and never changes; make a volume from it: pfcli clone_volume -v {volume.Name} -c NAME");

    private static DirectoryFault? AppendOnlyFault(VolumeRecord old, ChangeVolume change)
    {
        if (change.Image == true && old.IsAppendOnly) return AppendOnlyFault(old)! with { Field = "image" };
        return change.SizeBytes is { } size && size != old.SizeBytes && SealedFault(old) is { } fault ? fault with { Field = "sizeBytes" } : null;
    }
}
