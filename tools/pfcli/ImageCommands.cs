using System.CommandLine;
using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Pfcli;

/// <summary>Images: volumes that never change again, from which others are made.</summary>
internal static class ImageCommands
{
    public static void AddTo(CommandSet commands)
    {
        Option<string> name = Inputs.Volume("Name of the volume that becomes an image");
        commands.Add("create_image", "Makes a volume an image: it never changes again, and others are made from it", [name], async (context, cancel) =>
        {
            VolumeInfo volume = await Inputs.VolumeAsync(context, context.Get(name)!, cancel);
            if (volume.Image) return VolumeCommands.Show(context, volume);
            context.Confirm($"making volume {volume.Name} ({SizeText.Format(volume.SizeBytes)}) an image, read-only for ever");
            return await VolumeCommands.ChangeAsync(context, volume, new ChangeVolume(volume.Revision, Image: true), cancel);
        },
        "pfcli create_image -v debian-12",
        "pfcli clone_volume -v debian-12 -c vm1          # a writable volume from it, at once",
        "pfcli import_image -v debian-12 -i debian-12.qcow2 --image");
    }
}
